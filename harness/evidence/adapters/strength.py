"""Evidence about how large an adapter's change is beside the weights that it changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import numpy as np

from harness.evidence.adapters.adapter import check_patterns, scaling
from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.evidence.values.arrays import iterate_rows, read_array
from harness.evidence.values.decodable import is_float
from harness.facts.adapters import ModuleStrength, Strength
from harness.facts.checkpoint import Adapter, Base, Pair, Tensor
from harness.registry import Missing, NotApplicable
from mudpuppy.adapters.tensor_names import RENAMES, rename

USUAL_RMS = 0.02
"""Root mean square of a linear layer's weight where the base is not at hand: what models start
from, and what most of them keep within a factor of three."""
LARGEST = 1 << 26
"""Numbers of a factor beyond which it is left out: 256 MB of float32."""
SAMPLED_BLOCKS = 4
"""Blocks of a base weight from which its size is told: a million numbers, good to one percent."""


@provides("adapter_strength", Depth.WEIGHTS)
def measure_strength(evidence: CheckpointEvidence) -> Strength:
    """Return |scale * B A| / |W| of every module with plain factors."""
    adapter: Adapter = evidence.get("adapter")
    if not adapter.is_lora or adapter.kind == "ADALORA":
        raise NotApplicable("the adapter is no LoRA")
    pairs = [pair for pair in adapter.pairs if _is_plain(pair)]
    if not pairs:
        raise NotApplicable("the adapter holds no pair of plain LoRA factors")
    check_patterns(adapter.settings, [pair.module for pair in pairs])
    base: Base | None = evidence.find("base")
    known = {} if base is None else {p.module: find_weight(base.tensors, p.module) for p in pairs}
    root, found, measured = Path(adapter.root), [], 0
    for pair in pairs:
        weight = known.get(pair.module)
        rms = _sampled_rms(Path(base.root), weight) if base and weight is not None else None
        measured += rms is not None
        change = _change_rms(root, pair) * abs(scaling(adapter.settings, pair.module))
        if math.isfinite(change):
            ratio = change / (USUAL_RMS if rms is None else rms)
            found.append(ModuleStrength(module=pair.module, ratio=ratio))
    if not found:
        raise Missing("no module has finite factors")
    return Strength(modules=tuple(found), is_measured=2 * measured > len(pairs))


def find_weight(tensors: Mapping[str, Tensor], module: str) -> Tensor | None:
    """Return the weight of a module, under the name it has in memory or an older one."""
    names = (f"{rename(module, renames)}.weight" for renames in RENAMES)
    return next((tensors[name] for name in names if name in tensors), None)


def _is_plain(pair: Pair) -> bool:
    """Whether the change is scale * B A and nothing more; DoRA stretches it, experts hold many."""
    if pair.a is None or pair.b is None or pair.magnitude is not None or "experts" in pair.module:
        return False
    plain = all(
        len(one.shape) == 2 and is_float(one) and one.elements <= LARGEST
        for one in (pair.a, pair.b)
    )
    return plain and pair.a.shape[0] == pair.b.shape[1] and pair.b.shape[0] * pair.a.shape[1] > 0


def _change_rms(root: Path, pair: Pair) -> float:
    """Return the root mean square of B A from the two Gram matrices, rank by rank alone."""
    assert pair.a is not None
    assert pair.b is not None
    a, b = read_array(root, pair.a), read_array(root, pair.b)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = float(np.sum((a @ a.T) * (b.T @ b)))
    size = b.shape[0] * a.shape[1]
    return math.sqrt(max(0.0, squares) / size) if math.isfinite(squares) else math.inf


def _sampled_rms(root: Path, tensor: Tensor) -> float | None:
    """Return the size of a weight from its first blocks; None when it cannot be told."""
    if not is_float(tensor) or len(tensor.shape) != 2:
        return None
    total, count = 0.0, 0
    for block in islice(iterate_rows(root, tensor), SAMPLED_BLOCKS):
        total += float(np.dot(block.ravel(), block.ravel()))
        count += block.size
    found = math.sqrt(total / count) if count and math.isfinite(total) else 0.0
    return found or None
