"""Layers whose levels lie in bytes: bitsandbytes in 4 and 8 bits, scaled levels, MXFP4, int4.

bitsandbytes packs two levels a byte (the earlier one high) over the flattened weight, one `absmax`
a block; its JSON state names shape and block size. A block's largest value is its scale, so every
block holds an outermost level; blocks that hold none were made with another block size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.evidence.quantised.bitstream import unpack_nibbles
from harness.evidence.quantised.scales import MOST_BYTES, judge_scales, missing_part, shape_flaw
from harness.evidence.values.arrays import read_array, read_bytes
from harness.evidence.values.decodable import can_decode, is_float
from harness.facts.checkpoint import Tensor
from harness.facts.quantised import Flaw, QuantisedLayer

STATE = "weight.quant_state.bitsandbytes__"
FLOAT_PARTS = tuple(
    f"weight.{part}" for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
)
"""Parts that hold floats; absmax holds bytes where it is itself quantised."""
MOST_STATE_BYTES = 65_536
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Blocks that bitsandbytes has kernels for."""
NF4 = """-1 -.6961928 -.52507305 -.3949175 -.28444138 -.18477343 -.09105004 0
    .0795803 .1609302 .2461123 .33791524 .44070983 .562617 .72295684 1"""
FP4 = """0 .0052083 .6666667 1 .3333333 .5 .1666667 .25
    0 -.0052083 -.6666667 -1 -.3333333 -.5 -.1666667 -.25"""
TABLES = {kind: tuple(map(float, text.split())) for kind, text in (("nf4", NF4), ("fp4", FP4))}
"""Values of the 16 levels (QLoRA, appendix E; bitsandbytes' functional.py)."""
TABLE_TOLERANCE = 2e-3
SAMPLE_BYTES = 1 << 17
"""Bytes of levels that are looked at."""
WITH_OUTERMOST = 0.97
"""Share of blocks that must hold an outermost level; all do, when the block size is right. With
one of half the real size, four of five do."""
HALVES_SEEN = 4096
"""Half blocks that must all hold one before a block is said to be twice the real size."""


def _layer(
    kind: str, name: str, bits: int, parts: Mapping[str, Tensor], flaws: tuple[Flaw, ...]
) -> QuantisedLayer:
    names = tuple(tensor.name for part, tensor in parts.items() if part != "bias")
    return QuantisedLayer(name=name, kind=kind, bits=bits, parts=names, flaws=flaws)


def examine_bnb(
    folder: Path, name: str, parts: Mapping[str, Tensor], declared: Mapping[str, Any]
) -> QuantisedLayer:
    """Examine one 4-bit layer of bitsandbytes."""
    state_part = next((part for part in parts if part.startswith(STATE)), "")
    wanted = ("weight", "weight.absmax", "weight.quant_map")
    lost = [part for part in wanted if part not in parts]
    if not state_part:
        lost.append(f"{STATE}{declared.get('bnb_4bit_quant_type') or 'nf4'}")
    if lost:
        flaws = tuple(missing_part(name, part) for part in lost)
        return _layer("bnb-4bit", name, 4, parts, flaws)
    state = _read_state(folder, parts[state_part])
    if isinstance(state, str):
        flaw = Flaw(
            kind="part",
            what="state that cannot be read",
            tensor=f"{name}.{state_part}",
            found=state,
        )
        return _layer("bnb-4bit", name, 4, parts, (flaw,))
    return _layer("bnb-4bit", name, 4, parts, (*_judge_bnb(folder, name, parts, state),))


def _read_state(folder: Path, tensor: Tensor) -> dict[str, Any] | str:
    """Return the JSON state of a layer, or why it cannot be read."""
    size = tensor.end - tensor.start
    if tensor.dtype != "U8" or size > MOST_STATE_BYTES:
        return f"{tensor.dtype} of {size:,} bytes"
    try:
        value = json.loads(read_bytes(folder, tensor, 0, size).tobytes())
    except (ValueError, RecursionError) as problem:
        return str(problem)[:80]
    if not isinstance(value, dict) or not _are_sizes(value.get("shape")):
        return "no object with a shape"
    if type(value.get("blocksize")) is not int or value["blocksize"] < 1:
        return f"a block size of {str(value.get('blocksize'))[:20]}"
    return value


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) < 5
        and all(type(size) is int and 0 < size < 1 << 31 for size in value)
    )


def _judge_bnb(
    folder: Path, name: str, parts: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Iterator[Flaw]:
    weight, absmax = parts["weight"], parts["weight.absmax"]
    count = 1
    for size in state["shape"]:
        count *= size
    if weight.end - weight.start != -(-count // 2):
        yield Flaw(
            kind="shape",
            what=f"bytes of levels for the shape {state['shape']}",
            tensor=weight.name,
            found=weight.end - weight.start,
            expected=-(-count // 2),
        )
        return
    odd = [part for part in FLOAT_PARTS if part in parts and not is_float(parts[part])]
    odd = [part for part in odd if part != "weight.absmax" or absmax.dtype != "U8"]
    if odd or not absmax.elements:
        tensor = parts[odd[0]] if odd else absmax
        yield Flaw(kind="part", what="type", tensor=tensor.name, found=tensor.dtype)
        return
    block = state["blocksize"]
    fits = absmax.elements == -(-count // block)
    if not fits or block not in BLOCK_SIZES:
        yield _wrong_block(absmax, count, block)
    nested = parts.get("weight.nested_absmax")
    if absmax.dtype == "U8":
        yield from _judge_nested(folder, name, parts, state)
    else:
        yield from judge_scales(folder, absmax, what="absmax")
    if nested is not None:
        yield from judge_scales(folder, nested, what="nested absmax")
    yield from _judge_table(folder, parts, state)
    if fits:
        yield from _judge_levels(folder, weight, block, str(state.get("quant_type")))


def _wrong_block(absmax: Tensor, count: int, block: int) -> Flaw:
    per = count / absmax.elements if absmax.elements else 0
    nearest = min(BLOCK_SIZES, key=lambda size: abs(-(-count // size) - absmax.elements))
    exact = -(-count // nearest) == absmax.elements
    return Flaw(
        kind="block",
        what="levels for each absmax",
        tensor=absmax.name,
        found=nearest if exact else round(per, 2),
        expected=f"{block}, which its state declares",
    )


def _judge_nested(
    folder: Path, name: str, parts: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Iterator[Flaw]:
    """Yield what is wrong with scales that are themselves quantised."""
    for part in ("weight.nested_absmax", "weight.nested_quant_map"):
        if part not in parts:
            yield missing_part(name, part)
    nested, size = parts.get("weight.nested_absmax"), state.get("nested_blocksize")
    table = parts.get("weight.nested_quant_map")
    if table is not None and table.elements != 256:
        yield shape_flaw(table, (256,), "one value for every byte")
    if nested is None:
        return
    if type(size) is not int or size < 1:
        yield Flaw(kind="part", what="nested block size", tensor=nested.name, found=str(size)[:20])
    elif nested.elements != -(-parts["weight.absmax"].elements // size):
        yield Flaw(
            kind="block",
            what="absmax for each nested absmax",
            tensor=nested.name,
            found=round(parts["weight.absmax"].elements / max(1, nested.elements), 2),
            expected=f"{size}, which its state declares",
        )
    offset = state.get("nested_offset")
    if not isinstance(offset, (int, float)) or not np.isfinite(offset):
        yield Flaw(kind="scale", what="nested offset", tensor=nested.name, found=str(offset)[:20])


def _judge_table(
    folder: Path, parts: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Iterator[Flaw]:
    """Yield a table of levels that is not that of its type."""
    tensor, known = parts["weight.quant_map"], TABLES.get(str(state.get("quant_type")))
    if known is None:
        return
    if tensor.elements != 16 or not can_decode(tensor):
        yield shape_flaw(tensor, (16,), "one value for every level")
        return
    values = read_array(folder, tensor).ravel()
    with np.errstate(invalid="ignore"):  # a NaN is far from everything
        far = np.abs(values - np.array(known, np.float32))
    if not (far <= TABLE_TOLERANCE).all():
        place = int(np.argmax(np.nan_to_num(far, nan=np.inf)))
        yield Flaw(
            kind="table",
            what=f"value of level {place} of {state['quant_type']}",
            tensor=tensor.name,
            found=str(round(float(values[place]), 4)),
            expected=round(known[place], 4),
        )


def _judge_levels(folder: Path, weight: Tensor, block: int, kind: str) -> Iterator[Flaw]:
    """Yield that the levels were made with another block size than the one that is stored."""
    size = min(weight.end - weight.start, SAMPLE_BYTES) // (block // 2 or 1) * (block // 2)
    if size < 64 * block // 2 or kind not in TABLES:
        return
    levels = unpack_nibbles(read_bytes(folder, weight, 0, size), high_first=True)
    low, high, nothing = (0, 15, 7) if kind == "nf4" else (11, 3, 0)
    outermost = (levels == low) | (levels == high)
    yield from judge_blocks(weight, outermost, levels != nothing, block)


def judge_blocks(
    tensor: Tensor, outermost: NDArray[np.bool_], used: NDArray[np.bool_], block: int
) -> Iterator[Flaw]:
    """Yield a block size that the places of the outermost levels speak against."""
    held: NDArray[np.bool_] = np.asarray(outermost.reshape(-1, block).any(axis=1))
    has = held[np.asarray(used.reshape(-1, block).any(axis=1))]
    if not has.size:
        return
    if has.mean() < WITH_OUTERMOST:
        yield Flaw(
            kind="block",
            what=f"blocks of {block} that hold an outermost level",
            tensor=tensor.name,
            found=f"{has.mean():.0%}",
            expected="100%",
        )
        return
    halves = outermost.reshape(-1, block // 2).any(axis=1)
    if halves.size >= HALVES_SEEN and halves.all():
        yield Flaw(
            kind="block",
            what=f"halves of blocks of {block} that hold an outermost level",
            tensor=tensor.name,
            found="100%",
            expected="some without: the levels were made in smaller blocks",
        )


def examine_bnb8(folder: Path, name: str, parts: Mapping[str, Tensor]) -> QuantisedLayer:
    """Examine one 8-bit layer of bitsandbytes: int8 levels, one SCB a row, 127 its level."""
    lost = [part for part in ("weight", "SCB") if part not in parts]
    flaws: tuple[Flaw, ...] = tuple(missing_part(name, part) for part in lost)
    if not lost:
        weight, scale = parts["weight"], parts["SCB"]
        if weight.shape and scale.elements != weight.shape[0]:
            flaws += (shape_flaw(scale, weight.shape[:1], "one for every row"),)
        flaws += (*judge_scales(folder, scale, what="SCB"),)
    return _layer("bnb-8bit", name, 8, parts, flaws)


def examine_scaled(
    folder: Path, name: str, parts: Mapping[str, Tensor], declared: Mapping[str, Any]
) -> QuantisedLayer:
    """Examine a layer of int8 or fp8 levels with one scale a tensor, row, group or tile."""
    weight = parts.get("weight") or parts.get("weight_packed")
    part = "weight_scale" if "weight_scale" in parts else "weight_scale_inv"
    scale = parts[part]
    if weight is None:
        return _layer("scaled", name, 8, parts, (missing_part(name, "weight"),))
    flaws: tuple[Flaw, ...] = ()
    expected = _scale_shape(weight, scale, declared) if part == "weight_scale_inv" else None
    if expected is not None and scale.shape != expected:
        flaws += (shape_flaw(scale, expected, f"tiles of a weight {list(weight.shape)}"),)
    elif part == "weight_scale" and not _fits_rows(weight, scale):
        flaws += (shape_flaw(scale, (*weight.shape[:1], 1), "one for the tensor or every row"),)
    flaws += (*judge_scales(folder, scale, what="scales"),)
    return _layer("scaled", name, 8, parts, flaws)


def _scale_shape(
    weight: Tensor, scale: Tensor, declared: Mapping[str, Any]
) -> tuple[int, ...] | None:
    """Return the shape of the scales of tiles; None where the size of a tile is not declared."""
    tile: Any = declared.get("weight_block_size")
    if not _are_sizes(tile) or len(tile) != 2 or len(weight.shape) != 2 or len(scale.shape) != 2:
        return None
    return tuple(-(-size // part) for size, part in zip(weight.shape, tile, strict=True))


def _fits_rows(weight: Tensor, scale: Tensor) -> bool:
    """Whether there is one scale for the tensor, every row, or every group of a row."""
    return (
        scale.elements == 1
        or bool(scale.shape and weight.shape and scale.shape[0] == weight.shape[0])
        or len(weight.shape) != 2
    )


def examine_mxfp4(folder: Path, name: str, parts: Mapping[str, Tensor]) -> QuantisedLayer | None:
    """Examine packed experts in MXFP4: 16 bytes of levels a block, one power of two."""
    blocks, scales = parts["blocks"], parts.get("scales")
    if blocks.dtype != "U8" or len(blocks.shape) < 2:
        return None
    if scales is None:
        return _layer("mxfp4", name, 4, parts, (missing_part(name, "scales"),))
    flaws: tuple[Flaw, ...] = ()
    if scales.shape != blocks.shape[:-1]:
        flaws += (shape_flaw(scales, blocks.shape[:-1], "one for every block"),)
    if scales.end - scales.start <= MOST_BYTES:
        bad = int(np.count_nonzero(read_array(folder, scales) == 255))
        if bad:
            flaws += (
                Flaw(
                    kind="scale",
                    what="scales that are NaN",
                    tensor=scales.name,
                    found=bad,
                    expected=0,
                ),
            )
    return _layer("mxfp4", name, 4, parts, flaws)


def examine_int4(folder: Path, name: str, parts: Mapping[str, Tensor]) -> QuantisedLayer | None:
    """Examine a layer of two levels a byte; whose format it is, is not known: scales alone."""
    if "scales" not in parts:
        return None
    flaws = (*judge_scales(folder, parts["scales"]),)
    return _layer("int4", name, 4, parts, flaws)
