"""Rows of quantised layers as numbers, without torch: what readers of each format would see.

Of a layer in words (GPTQ, AWQ) all words are read and the wanted outputs kept; of one in bytes the
rows lie together. Memory stays that of a few hundred rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.evidence.quantised.bitstream import unpack_awq, unpack_nibbles, unpack_words
from harness.evidence.quantised.blocks import STATE, TABLES
from harness.evidence.quantised.scales import read_words
from harness.evidence.values.arrays import Floats, decode, read_array, read_bytes
from harness.facts.checkpoint import Tensor

Parts = Mapping[str, Tensor]
WORD_ROWS = 512
"""Rows of words that are read at once."""


def read_gptq(folder: Path, parts: Parts, bits: int, first: int, last: int, offset: int) -> Floats:
    """Return outputs `first:last` of a GPTQ layer, (outputs, inputs).

    Args:
        folder: where the file is.
        parts: its tensors.
        bits: bits of a level; `first` and `last` must lie between whole words.
        first: first output.
        last: one past the last.
        offset: what is added to a stored zero.
    """
    scales = read_array(folder, parts["scales"])[:, first:last]
    words = read_words(folder, parts["qzeros"], 0, parts["qzeros"].shape[0])
    per = slice(first * bits // 32, -(-last * bits // 32))
    zeros = unpack_words(np.ascontiguousarray(words[:, per].T), bits).T[:, : last - first]
    levels = unpack_words(_columns(folder, parts["qweight"], first, last), bits)
    inputs = levels.shape[0]
    if "g_idx" in parts:
        group = read_array(folder, parts["g_idx"]).astype(np.intp)
    else:
        group = np.arange(inputs) // -(-inputs // scales.shape[0])
    values = levels.astype(np.float32) - (zeros[group].astype(np.float32) + offset)
    weight: Floats = np.ascontiguousarray((values * scales[group]).T)
    return weight


def _columns(folder: Path, tensor: Tensor, first: int, last: int) -> NDArray[np.uint32]:
    """Return some columns of a matrix of words, read a few hundred rows at a time."""
    height = tensor.shape[0]
    found = np.empty((height, last - first), np.uint32)
    for start in range(0, height, WORD_ROWS):
        stop = min(height, start + WORD_ROWS)
        found[start:stop] = read_words(folder, tensor, start, stop)[:, first:last]
    return found


def read_awq(folder: Path, parts: Parts, first: int, last: int) -> Floats:
    """Return outputs `first:last` (multiples of 8) of an AWQ layer, (outputs, inputs)."""
    scales = read_array(folder, parts["scales"])[:, first:last]
    per = slice(first // 8, last // 8)
    stored = read_words(folder, parts["qzeros"], 0, parts["qzeros"].shape[0])
    zeros = unpack_awq(np.ascontiguousarray(stored[:, per]))
    levels = unpack_awq(_columns(folder, parts["qweight"], per.start, per.stop))
    group = np.arange(levels.shape[0]) // -(-levels.shape[0] // scales.shape[0])
    values = levels.astype(np.float32) - zeros[group].astype(np.float32)
    weight: Floats = np.ascontiguousarray((values * scales[group]).T)
    return weight


def read_bnb(folder: Path, parts: Parts, columns: int, first: int, last: int) -> Floats | None:
    """Return rows `first:last` of a 4-bit layer of bitsandbytes; None where they share a byte.

    The layer's state must be sound: see `quantised_blocks.examine_bnb`.
    """
    part = next(one for one in parts if one.startswith(STATE))
    tensor = parts[part]
    state: dict[str, Any] = json.loads(
        read_bytes(folder, tensor, 0, tensor.end - tensor.start).tobytes()
    )
    start, stop = first * columns, last * columns
    if start % 2 or stop % 2 or part.removeprefix(STATE) not in TABLES:
        return None
    raw = read_bytes(folder, parts["weight"], start // 2, stop // 2)
    table = read_array(folder, parts["weight.quant_map"]).ravel()
    values = table[unpack_nibbles(raw, high_first=True)]
    block = state["blocksize"]
    absmax = _absmax(folder, parts, state, start // block, -(-stop // block))
    scale = np.repeat(absmax, block)[start % block :][: stop - start]
    weight: Floats = (values * scale).reshape(last - first, columns)
    return weight


def _absmax(folder: Path, parts: Parts, state: Mapping[str, Any], first: int, last: int) -> Floats:
    """Return the scales of some blocks, themselves dequantised where they are in 8 bits."""
    tensor = parts["weight.absmax"]
    width = (tensor.end - tensor.start) // tensor.elements
    raw = read_bytes(folder, tensor, first * width, last * width)
    if tensor.dtype != "U8":
        return decode(raw, tensor.dtype)
    table = read_array(folder, parts["weight.nested_quant_map"]).ravel()
    nested = read_array(folder, parts["weight.nested_absmax"]).ravel()
    place = np.arange(first, last) // state["nested_blocksize"]
    found: Floats = table[raw] * nested[place] + np.float32(state["nested_offset"])
    return found


def read_scaled(folder: Path, parts: Parts, first: int, last: int) -> Floats | None:
    """Return rows `first:last` of int8 or fp8 levels with their scale; None for other layouts."""
    weight = parts["weight"]
    rows, columns = weight.shape
    width = (weight.end - weight.start) // weight.elements
    raw = read_bytes(folder, weight, first * columns * width, last * columns * width)
    levels = decode(raw, weight.dtype).reshape(last - first, columns)
    if "SCB" in parts:
        scale = read_array(folder, parts["SCB"]).reshape(-1, 1) / np.float32(127)
    else:
        scale = read_array(folder, parts.get("weight_scale") or parts["weight_scale_inv"])
    if scale.size == 1:
        return levels * np.float32(scale.reshape(-1)[0])
    if scale.ndim != 2:
        return None
    return levels * _spread(scale, rows, columns, first, last)


def _spread(scale: Floats, rows: int, columns: int, first: int, last: int) -> Floats:
    """Return the scale of every value of some rows: one a row, a group, or a tile."""
    row = np.arange(first, last) // _tile(rows, scale.shape[0])
    column = np.arange(columns) // _tile(columns, scale.shape[1])
    spread: Floats = scale[row][:, column]
    return spread


def _tile(size: int, count: int) -> int:
    """Return the size of the tiles of which `count` cover `size`: 128 where that fits.

    The last tile of a row may be short, so that their number alone does not say how long they are.
    """
    return 128 if -(-size // 128) == count and count > 1 else -(-size // count)
