"""Layers packed into 32-bit words: GPTQ in both versions of its format, and AWQ.

GPTQ, `bits` in 2, 3, 4, 8: qweight int32 (in * bits / 32, out), qzeros int32 (groups, out * bits /
32), scales (groups, out), g_idx int32 (in,). Version 1 stores each zero less one, version 2 as it
is. AWQ: qweight int32 (in, out / 8), qzeros int32 (groups, out / 8), scales (groups, out).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.evidence.quantised.bitstream import Levels, unpack_awq, unpack_words
from harness.evidence.quantised.scales import (
    MOST_BYTES,
    count_scales,
    judge_scales,
    missing_part,
    read_words,
    shape_flaw,
)
from harness.evidence.values.arrays import read_array
from harness.facts.checkpoint import Tensor
from harness.facts.quantised import Flaw, QuantisedLayer
from harness.registry import Missing

BITS = (2, 3, 4, 8)
VERSIONS = ("gptq", "gptq_v2")
"""Formats whose zeros are known."""
SAMPLE = 1 << 17
"""Levels of a layer that are looked at."""
CONSTANT_SHARE = 0.98
"""Share of the zeros that must be alike for a layer to count as symmetric."""


def examine_gptq(
    folder: Path, name: str, parts: Mapping[str, Tensor], declared: Mapping[str, Any]
) -> QuantisedLayer:
    """Examine one layer of a GPTQ model."""
    bits = _bits(name, parts, declared)
    if flaws := _judge_parts(name, parts):
        return _layer("gptq", name, parts, bits, flaws)
    if bits not in BITS:
        return _layer("gptq", name, parts, 0, ())
    columns, outputs = parts["qweight"].shape[0] * 32 // bits, parts["qweight"].shape[1]
    size = _group_size(declared, columns)
    flaws += (*_judge_shapes(parts, bits, columns, outputs, size),)
    flaws += (*judge_scales(folder, parts["scales"]),)
    if flaws or any(part.end - part.start > MOST_BYTES for part in _small(parts)):
        return _layer("gptq", name, parts, bits, flaws)
    groups = parts["scales"].shape[0]
    index = _read_index(folder, parts.get("g_idx"), columns, size or columns)
    flaws += (*_judge_index(parts, index, groups, size, declared),)
    if any(flaw.what.startswith("groups out") for flaw in flaws):
        return _layer("gptq", name, parts, bits, flaws)
    stored = unpack_words(_words(folder, parts["qzeros"]).T, bits).T[:, :outputs]
    zero, bias = _read_levels(folder, parts, bits, stored, index, declared)
    flaws += (*_judge_zeros(folder, parts, bits, stored, index),)
    return _layer("gptq", name, parts, bits, flaws, zero, bias)


def _judge_parts(name: str, parts: Mapping[str, Tensor]) -> tuple[Flaw, ...]:
    """Return which matrices of a layer are not there, or are no matrices."""
    wanted = ("qweight", "qzeros", "scales")
    lost = [missing_part(name, part) for part in wanted if part not in parts]
    flat = [
        shape_flaw(parts[part], (0, 0), "two dimensions wanted")
        for part in wanted
        if part in parts and (len(parts[part].shape) != 2 or not parts[part].elements)
    ]
    for part in ("qzeros", "g_idx"):
        tensor = parts.get(part)
        if tensor is not None and tensor.dtype not in ("I32", "U32"):
            flat.append(
                Flaw(
                    kind="part",
                    what="type",
                    tensor=tensor.name,
                    found=tensor.dtype,
                    expected="I32",
                )
            )
    return (*lost, *flat)


def _layer(
    kind: str,
    name: str,
    parts: Mapping[str, Tensor],
    bits: int,
    flaws: tuple[Flaw, ...],
    zero: int | None = None,
    bias: float | None = None,
) -> QuantisedLayer:
    return QuantisedLayer(
        name=name,
        kind=kind,
        bits=bits,
        parts=tuple(tensor.name for part, tensor in parts.items() if part != "bias"),
        flaws=flaws,
        zero=zero,
        bias=bias,
    )


def _small(parts: Mapping[str, Tensor]) -> Iterator[Tensor]:
    for part in ("scales", "qzeros", "g_idx"):
        if part in parts:
            yield parts[part]


def _bits(name: str, parts: Mapping[str, Tensor], declared: Mapping[str, Any]) -> int:
    """Return the bits of a layer: declared for all, for this one, or from the shapes."""
    dynamic = declared.get("dynamic")
    for key, value in dynamic.items() if isinstance(dynamic, dict) else ():
        # A pattern is a stranger's regular expression; where it could apply, the shapes decide.
        if isinstance(value, dict) and "bits" in value and not str(key).startswith("-:"):
            return _bits_of_shapes(parts)
    bits = declared.get("bits", declared.get("w_bit"))
    return bits if type(bits) is int else _bits_of_shapes(parts)


def _bits_of_shapes(parts: Mapping[str, Tensor]) -> int:
    """Return the bits that the shapes of qzeros and scales give; 4 where they say nothing."""
    zeros, scales = parts.get("qzeros"), parts.get("scales")
    if zeros is None or scales is None or not zeros.shape or not scales.shape:
        return 4
    return zeros.shape[-1] * 32 // scales.shape[-1] if scales.shape[-1] else 4


def _group_size(declared: Mapping[str, Any], columns: int) -> int | None:
    """Return the declared size of a group; None when it is not known or differs by layer."""
    size = declared.get("group_size", declared.get("q_group_size"))
    dynamic = declared.get("dynamic")
    if isinstance(dynamic, dict) and "group_size" in str(dynamic)[:100_000]:
        return None
    if type(size) is not int or size == 0 or size < -1:
        return None
    return columns if size == -1 else size


def _judge_shapes(
    parts: Mapping[str, Tensor], bits: int, columns: int, outputs: int, size: int | None
) -> Iterator[Flaw]:
    scales, zeros, index = parts["scales"], parts["qzeros"], parts.get("g_idx")
    groups = scales.shape[0] if size is None else -(-columns // size)
    said = "" if size is None else f"for {columns} inputs in groups of {size}"
    if scales.shape != (groups, outputs):
        yield shape_flaw(scales, (groups, outputs), said or "for the outputs of qweight")
    packed = -(-outputs * bits // 32)
    if zeros.shape != (groups, packed):
        yield shape_flaw(zeros, (groups, packed), said or f"{bits} bits for every scale")
    if index is not None and index.shape != (columns,):
        yield shape_flaw(index, (columns,), "one group for every input")


def _read_index(folder: Path, tensor: Tensor | None, columns: int, size: int) -> NDArray[np.int64]:
    """Return the group of every input."""
    if tensor is None:
        return np.arange(columns) // size
    return read_array(folder, tensor).astype(np.int64)


def _judge_index(
    parts: Mapping[str, Tensor],
    index: NDArray[np.int64],
    groups: int,
    size: int | None,
    declared: Mapping[str, Any],
) -> Iterator[Flaw]:
    """Yield what is wrong with the groups of the inputs."""
    tensor = parts.get("g_idx")
    if tensor is None:
        return
    wrong = int(np.count_nonzero((index < 0) | (index >= groups)))
    if wrong:
        yield Flaw(
            kind="group",
            what="groups out of range",
            tensor=tensor.name,
            found=f"{wrong} of {index.size}",
            expected=f"0 to {groups - 1}",
        )
        return
    if size is None or groups == 1:
        return
    counts = np.bincount(index, minlength=groups)
    if int(counts.max()) > size:
        yield Flaw(
            kind="group",
            what="inputs in one group",
            tensor=tensor.name,
            found=int(counts.max()),
            expected=size,
        )
    elif not declared.get("desc_act") and (index != np.arange(index.size) // size).any():
        moved = int(np.count_nonzero(index != np.arange(index.size) // size))
        yield Flaw(
            kind="group",
            what="inputs out of the order that desc_act: false declares",
            tensor=tensor.name,
            found=f"{moved} of {index.size}",
            expected=0,
        )


def _words(folder: Path, tensor: Tensor) -> NDArray[np.uint32]:
    return read_words(folder, tensor, 0, tensor.shape[0])


def _offset(declared: Mapping[str, Any]) -> int | None:
    """Return what readers of the declared format add to a stored zero; None when not known."""
    method = str(declared.get("quant_method") or "gptq").lower()
    version = declared.get("checkpoint_format") or "gptq"
    if method != "gptq" or version not in VERSIONS:
        return None
    return 1 if version == "gptq" else 0


def _read_levels(
    folder: Path,
    parts: Mapping[str, Tensor],
    bits: int,
    stored: Levels,
    index: NDArray[np.int64],
    declared: Mapping[str, Any],
) -> tuple[int | None, float | None]:
    """Return the stored zero that nearly all groups have, and the mean of level less zero."""
    counts = np.bincount(stored.ravel(), minlength=1)
    top = int(counts.argmax())
    zero = top if counts[top] >= CONSTANT_SHARE * stored.size else None
    offset = _offset(declared)
    if offset is None:
        return zero, None
    levels, inputs = _sample_levels(folder, parts["qweight"], bits)
    zeros = stored[index[inputs]].astype(np.float32) + offset
    return zero, float((levels.astype(np.float32) - zeros).mean())


def _sample_levels(folder: Path, qweight: Tensor, bits: int) -> tuple[Levels, NDArray[np.intp]]:
    """Return the levels of the first inputs (inputs, outputs), and their numbers."""
    outputs = max(1, qweight.shape[1])
    step = 3 if bits == 3 else 1
    rows = max(step, min(qweight.shape[0], SAMPLE * bits // 32 // outputs) // step * step)
    levels = unpack_words(read_words(folder, qweight, 0, min(rows, qweight.shape[0])), bits)
    return levels, np.arange(levels.shape[0])


def _judge_zeros(
    folder: Path,
    parts: Mapping[str, Tensor],
    bits: int,
    stored: Levels,
    index: NDArray[np.int64],
) -> Iterator[Flaw]:
    """Yield scales of zero under which lie levels that mean something."""
    scales = parts["scales"]
    if not count_scales(folder, scales).zero:
        return
    dead = read_array(folder, scales) == 0
    levels, inputs = _sample_levels(folder, parts["qweight"], bits)
    under = dead[index[inputs]]
    varied = int(np.ptp(levels[under])) if under.any() else 0
    if varied or dead.mean() > 0.5:
        yield Flaw(
            kind="scale",
            what="scales of zero over levels that differ",
            tensor=scales.name,
            found=int(dead.sum()),
            expected=0,
        )


def examine_awq(
    folder: Path, name: str, parts: Mapping[str, Tensor], declared: Mapping[str, Any]
) -> QuantisedLayer:
    """Examine one layer of an AWQ model (gemm packing, 4 bits)."""
    flaws = _judge_parts(name, parts)
    if flaws:
        return _layer("awq", name, parts, 4, flaws)
    columns, outputs = parts["qweight"].shape[0], parts["qweight"].shape[1] * 8
    size = _group_size(declared, columns)
    scales, zeros = parts["scales"], parts["qzeros"]
    groups = scales.shape[0] if size is None else -(-columns // size)
    if scales.shape != (groups, outputs):
        flaws += (shape_flaw(scales, (groups, outputs), f"for {columns} inputs"),)
    if zeros.shape != (groups, outputs // 8):
        flaws += (shape_flaw(zeros, (groups, outputs // 8), f"for {columns} inputs"),)
    flaws += (*judge_scales(folder, scales),)
    if flaws or zeros.end - zeros.start > MOST_BYTES:
        return _layer("awq", name, parts, 4, flaws)
    rows = min(columns, max(1, SAMPLE // max(1, outputs)))
    try:
        levels = unpack_awq(read_words(folder, parts["qweight"], 0, rows))
        stored = unpack_awq(_words(folder, zeros))
    except Missing:
        return _layer("awq", name, parts, 4, flaws)
    group = np.arange(rows) // max(1, -(-columns // groups))
    bias = float((levels.astype(np.float32) - stored[group].astype(np.float32)).mean())
    return _layer("awq", name, parts, 4, flaws, None, bias)
