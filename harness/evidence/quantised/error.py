"""Evidence about how far quantised layers are from the base that they were made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.evidence.lineage.base import find_output
from harness.evidence.quantised.dequantise import read_awq, read_bnb, read_gptq, read_scaled
from harness.evidence.quantised.names import Parts, group_parts
from harness.evidence.quantised.own import read_own
from harness.evidence.quantised.own_names import KIND
from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.evidence.values.arrays import Floats, decode, read_bytes
from harness.evidence.values.decodable import can_decode
from harness.facts.checkpoint import Base, Tensor, Weights
from harness.facts.quantised import LayerError, Quantised, QuantisedLayer
from harness.registry import Missing

OUTPUTS = 256
"""Outputs of a layer that are compared, half from its start and half from its middle."""
STEP = 32
"""Outputs are taken in multiples of this, which are whole words at every width."""
FLOATS = ("F64", "F32", "F16", "BF16")
ALIVE = 0.1
"""Share of the median column's norm from which on a column of the base holds something."""


@provides("quantisation_errors", Depth.LINEAGE)
def measure_errors(evidence: CheckpointEvidence) -> tuple[LayerError, ...]:
    """Return the error of every sound layer whose weight the base has.

    Raises:
        Missing: there is no base, or it has none of the layers as plain weights.
    """
    quantised: Quantised = evidence.get("quantised")
    trained = _trained_beside(evidence)
    base = trained or _Source.of(evidence.get("base"))
    weights: Weights = evidence.get("weights")
    groups = group_parts(weights.tensors)
    direct = trained is not None or evidence.get("origin").get("method") == "gptq"
    found = []
    for layer in quantised.layers:
        old = base.tensors.get(f"{layer.name}.weight")
        if layer.flaws or old is None or old.dtype not in FLOATS or len(old.shape) != 2:
            continue
        parts = groups[layer.name]
        one = _measure(evidence.folder, base.root, layer, parts, old, quantised.declared)
        if one is not None:
            found.append(replace(one, direct=direct))
    if not found:
        raise Missing(f"the base {base.root} has none of the quantised layers as plain weights")
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Plain weights that levels are compared with."""

    root: Path
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, base: Base) -> _Source:
        return cls(root=Path(base.root), tensors=base.tensors)


def _trained_beside(evidence: CheckpointEvidence) -> _Source | None:
    """Return the trained model whose levels these are: that of the output which they lie in."""
    output = find_output(evidence.folder) if not evidence.file else None
    weights: Weights | None = CheckpointEvidence(output).find("weights") if output else None
    if output is None or weights is None:
        return None
    return _Source(root=output, tensors=weights.tensors)


def _measure(
    folder: Path,
    base: Path,
    layer: QuantisedLayer,
    parts: Parts,
    old: Tensor,
    declared: Mapping[str, Any],
) -> LayerError | None:
    """Compare some outputs of a layer with the base's; None where its layout is not known."""
    rows, columns = old.shape
    if not _fits(layer, parts, rows, columns):
        return None
    # GPTQ is read in both versions: which is right is another probe's question.
    sums, lengths, products = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
    size = 0.0
    dead, alive = np.ones(columns, bool), np.zeros(columns)
    for first, last in _spans(rows):
        plain = _rows(base, old, first, last)
        with np.errstate(all="ignore"):  # damaged numbers are what is looked for
            found = _read(folder, layer, parts, declared, columns, first, last)
        if not found or found[0].shape != plain.shape:
            return None
        for place, values in enumerate(found):
            sums[place] += _dot(values - plain)
            lengths[place] += _dot(values)
            products[place] += _dot(values, plain)
        size += _dot(plain)
        dead &= ~found[0].any(axis=0)
        alive += (plain.astype(np.float64) ** 2).sum(axis=0)
    if not size > 0:
        return None
    limit = ALIVE**2 * float(np.median(alive))
    best = min(range(len(found)), key=sums.__getitem__)
    span = float(np.sqrt(lengths[best] * size))
    return LayerError(
        name=layer.name,
        bits=layer.bits,
        relative=float(np.sqrt(sums[best] / size)),
        cosine=products[best] / span if 0 < span < np.inf else 0.0,
        factor=products[best] / size,
        direct=False,
        dead=int(np.count_nonzero(dead & (alive > limit))),
        inputs=columns,
    )


def _fits(layer: QuantisedLayer, parts: Parts, rows: int, columns: int) -> bool:
    """Whether the levels are those of a weight (rows, columns), in a layout that is known."""
    if layer.kind == "gptq":
        per = 32 / layer.bits if layer.bits in (2, 3, 4, 8) else 0
        words = parts["qweight"].shape
        whole = rows % (STEP if layer.bits == 3 else 32 // layer.bits or 1) == 0 if per else False
        return whole and words[1] == rows and round(words[0] * per) == columns
    if layer.kind == "awq":
        return parts["qweight"].shape == (columns, rows // 8)
    if layer.kind in ("bnb-8bit", "scaled"):
        weight = parts.get("weight")
        if weight is None or weight.shape != (rows, columns):
            return False
        return all(can_decode(tensor) for tensor in parts.values())
    return layer.kind in ("bnb-4bit", KIND)


def _spans(rows: int) -> list[tuple[int, int]]:
    """Return which outputs are compared: whole words of them, at every width."""
    if rows <= OUTPUTS:
        return [(0, rows)]
    middle = rows // 2 // STEP * STEP
    return [(0, OUTPUTS // 2), (middle, min(rows // STEP * STEP, middle + OUTPUTS // 2))]


def _rows(folder: Path, tensor: Tensor, first: int, last: int) -> Floats:
    width = (tensor.end - tensor.start) // tensor.shape[0]
    raw = read_bytes(folder, tensor, first * width, last * width)
    return decode(raw, tensor.dtype).reshape(last - first, tensor.shape[1])


def _read(
    folder: Path,
    layer: QuantisedLayer,
    parts: Parts,
    declared: Mapping[str, Any],
    columns: int,
    first: int,
    last: int,
) -> list[Floats]:
    """Return some outputs of a layer in every way in which they can be read."""
    found: list[Floats | None] = []
    if layer.kind == "gptq":
        found = [read_gptq(folder, parts, layer.bits, first, last, zero) for zero in (1, 0)]
    elif layer.kind == "awq":
        found = [read_awq(folder, parts, first, last)]
    elif layer.kind == "bnb-4bit":
        found = [read_bnb(folder, parts, columns, first, last)]
    elif layer.kind == KIND:
        found = [read_own(folder, parts, declared, columns, first, last)]
    else:
        found = [read_scaled(folder, parts, first, last)]
    return [one for one in found if one is not None]


def _dot(values: Floats, others: Floats | None = None) -> float:
    flat = values.ravel().astype(np.float64)
    return float(np.dot(flat, flat if others is None else others.ravel().astype(np.float64)))
