"""Layers in our own formats of 4 and 8 bits, in numpy: what they must hold, and what rows they are.

`qweight` is uint8, (outputs, ceil(inputs / 2)), the even column in the low half, or in 8 bits
(outputs, inputs); `scales` one for
every block of a row. A value is a level times a scale, in float32. Written a second time here, from
the formats' definitions: an error in the engine's own code is not repeated by its judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from harness.evidence.quantised.bitstream import unpack_nibbles
from harness.evidence.quantised.blocks import SAMPLE_BYTES, judge_blocks
from harness.evidence.quantised.blocks import TABLES as BNB_TABLES
from harness.evidence.quantised.own_names import KIND, METHOD, MOST_NAMES, last_parts
from harness.evidence.quantised.scales import MOST_BYTES, judge_scales, missing_part, shape_flaw
from harness.evidence.values.arrays import Floats, decode, read_array, read_bytes
from harness.facts.checkpoint import Tensor
from harness.facts.quantised import Flaw, QuantisedLayer

VERSION = 1
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a format is."""

    levels: tuple[float, ...]
    """Value of every code at scale 1."""
    scale: str
    """Type of the scales, as safetensors calls it."""
    outermost: tuple[int, ...]
    """Levels of which every block holds one; none where the format does not say so."""
    nothing: int
    """The level of zero."""
    bits: int = 4
    """Bits a code."""

    def width(self, columns: int) -> int:
        """Return the bytes of a row of codes."""
        return -(-columns * self.bits // 8)

    def codes(self, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the codes that bytes hold, along the last axis."""
        return raw if self.bits == 8 else unpack_nibbles(raw, high_first=False)


def _bf16(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(np.array(values, np.float32).astype(ml_dtypes.bfloat16).astype(float).tolist())


FORMS: dict[str, Form] = {
    "int4": Form(
        levels=tuple(float(n - 8) for n in range(16)), scale="F32", outermost=(1, 15), nothing=8
    ),
    "nf4": Form(levels=_bf16(BNB_TABLES["nf4"]), scale="BF16", outermost=(0, 15), nothing=7),
    "mxfp4": Form(
        levels=(*_E2M1, *(-level for level in _E2M1)), scale="U8", outermost=(), nothing=0
    ),
    "int8": Form(
        levels=tuple(float(n - 256 * (n > 127)) for n in range(256)),
        scale="F32",
        outermost=(127, 129),
        nothing=0,
        bits=8,
    ),
    "bnb-nf4": Form(levels=BNB_TABLES["nf4"], scale="F32", outermost=(), nothing=7),
    "bnb-fp4": Form(levels=BNB_TABLES["fp4"], scale="F32", outermost=(), nothing=0),
}
"""Our formats; those of bitsandbytes are given smaller blocks on the way, which need not hold an
outermost level."""

Parts = Mapping[str, Tensor]


def examine_own(
    folder: Path, name: str, parts: Parts, declared: Mapping[str, Any]
) -> QuantisedLayer:
    """Examine a layer of a checkpoint that declares our method."""
    names = tuple(tensor.name for part, tensor in parts.items() if part != "bias")
    flaws = (*_judge(folder, name, parts, declared),)
    return QuantisedLayer(name=name, kind=KIND, bits=_bits(declared), parts=names, flaws=flaws)


def _bits(declared: Mapping[str, Any]) -> int:
    form = FORMS.get(str(declared.get("format")))
    return 4 if form is None else form.bits


def lost_layers(declared: Mapping[str, Any], found: Iterable[str]) -> Iterator[QuantisedLayer]:
    """Yield the layers that our method lists as packed and of which no tensor is there."""
    names = declared.get("modules")
    if declared.get("quant_method") != METHOD or not isinstance(names, list):
        return
    ends = {last_parts(name) for name in found}
    for name in names[:MOST_NAMES]:
        if isinstance(name, str) and last_parts(name) not in ends:
            flaws = (missing_part(name, "qweight"),)
            bits = _bits(declared)
            yield QuantisedLayer(name=name, kind=KIND, bits=bits, parts=(), flaws=flaws)


def _judge(folder: Path, name: str, parts: Parts, declared: Mapping[str, Any]) -> Iterator[Flaw]:
    lost = [part for part in ("qweight", "scales") if part not in parts]
    if lost:
        yield from (missing_part(name, part) for part in lost)
        return
    levels, scales = parts["qweight"], parts["scales"]
    form, block = FORMS.get(str(declared.get("format"))), declared.get("block_size")
    if form is None or type(block) is not int or block < 1 or declared.get("version") != VERSION:
        keys = ("format", "block_size", "version")
        found = ", ".join(f"{key} {str(declared.get(key))[:20]}" for key in keys)
        yield Flaw(kind="part", what="declared layout", tensor=levels.name, found=found)
        return
    if levels.dtype != "U8" or scales.dtype != form.scale:
        wrong, wanted = (levels, "U8") if levels.dtype != "U8" else (scales, form.scale)
        yield Flaw(kind="part", what="type", tensor=wrong.name, found=wrong.dtype, expected=wanted)
        return
    if len(levels.shape) != 2 or len(scales.shape) != 2 or not levels.elements:
        yield shape_flaw(levels, (0, 0), "two dimensions wanted")
        return
    rows, even = levels.shape[0], levels.shape[1] * 8 // form.bits
    odd = even - (form.bits == 4)
    if scales.shape not in ((rows, -(-even // block)), (rows, -(-odd // block))):
        yield Flaw(
            kind="block",
            what=f"scales of {rows} rows of {even} levels",
            tensor=scales.name,
            found=list(scales.shape),
            expected=f"{[rows, -(-even // block)]} for blocks of {block}, which are declared",
        )
        return
    yield from _judge_own_scales(folder, scales)
    yield from _judge_outermost(folder, levels, form, block)


def _judge_own_scales(folder: Path, scales: Tensor) -> Iterator[Flaw]:
    if scales.dtype != "U8":
        yield from judge_scales(folder, scales)
        return
    if scales.end - scales.start > MOST_BYTES:
        return
    bad = int(np.count_nonzero(read_array(folder, scales) == 255))
    if bad:
        yield Flaw(
            kind="scale", what="scales that are NaN", tensor=scales.name, found=bad, expected=0
        )


def _judge_outermost(folder: Path, tensor: Tensor, form: Form, block: int) -> Iterator[Flaw]:
    """Yield that the levels were made in other blocks than are declared."""
    width = tensor.shape[1]
    rows, columns = min(tensor.shape[0], SAMPLE_BYTES // width), width * 8 // form.bits
    if not form.outermost or columns % block or block % 2 or rows * columns < 64 * block:
        return
    levels = form.codes(read_bytes(folder, tensor, 0, rows * width))
    outermost = np.isin(levels, form.outermost)
    yield from judge_blocks(tensor, outermost, levels != form.nothing, block)


def read_own(
    folder: Path, parts: Parts, declared: Mapping[str, Any], columns: int, first: int, last: int
) -> Floats | None:
    """Return rows `first:last` of a sound layer; None where it is one of other columns."""
    form, block = FORMS.get(str(declared.get("format"))), declared.get("block_size")
    if form is None or type(block) is not int:
        return None
    levels, scales = parts["qweight"], parts["scales"]
    if levels.shape[1] != form.width(columns) or scales.shape[1] != -(-columns // block):
        return None
    raw = _rows(folder, levels, first, last).reshape(last - first, -1)
    places = form.codes(raw)[:, :columns]
    values = np.array(form.levels, np.float32)[places]
    stored = _rows(folder, scales, first, last)
    if scales.dtype == "U8":
        decoded = np.ldexp(np.float32(1), stored.astype(np.int32) - 127)
    else:
        decoded = decode(stored, scales.dtype)
    spread = np.repeat(decoded.reshape(last - first, -1), block, axis=1)[:, :columns]
    weight: Floats = (values * spread).astype(np.float32)
    return weight


def _rows(folder: Path, tensor: Tensor, first: int, last: int) -> NDArray[np.uint8]:
    width = (tensor.end - tensor.start) // tensor.shape[0]
    return read_bytes(folder, tensor, first * width, last * width)
