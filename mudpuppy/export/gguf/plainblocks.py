"""F32, F16, BF16 and Q8_0 as ggml writes them, in numpy: the same bytes, in few passes.

Rows come as float32, as float16, or as uint16, which stands for the bits of bfloat16; numpy has no
such type. Every function works on a piece that fits the processor's cache, and releases the
interpreter's lock, so that several pieces can be made at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[Any]
"""Rows of a tensor: float32, float16, or uint16 for the bits of bfloat16; (rows, columns)."""
BLOCK = 32
"""Values of a block of Q8_0; before them comes their scale, in 2 bytes."""
BLOCK_BYTES = 2 + BLOCK
SMALLEST_FULL = 113
"""The exponent of bfloat16, with its bias, of the smallest number that float16 has in full
precision, 2 to the -14."""
FULL_EXPONENTS = 30
"""Exponents of such numbers."""
_SIGN = np.uint32(0x8000_0000)
_NEARLY_HALF = np.uint32(0x3EFF_FFFF)
"""The bits of the largest float32 below 0.5. Added, and then cut off, it rounds to nearest with
halves away from zero; 0.5 itself would round the number just below it up."""


def write_f32(rows: Rows, out: NDArray[np.uint8]) -> None:
    """Write rows as F32; `out` is (rows, 4 * columns)."""
    out[:] = to_float32(rows).view(np.uint8)


def write_f16(rows: Rows, out: NDArray[np.uint8]) -> None:
    """Write rows as F16, to nearest, infinite beyond its range; `out` is (rows, 2 * columns)."""
    target = out.view(np.uint16)
    if rows.dtype == np.float16:
        target[:] = rows.view(np.uint16)
    elif rows.dtype == np.uint16:
        target[:] = _half_of_bfloat16(rows)
    else:
        with np.errstate(over="ignore"):
            out.view(np.float16)[:] = rows


def write_bf16(rows: Rows, out: NDArray[np.uint8]) -> None:
    """Write rows as BF16, to nearest; `out` is (rows, 2 * columns)."""
    if rows.dtype == np.uint16:
        out.view(np.uint16)[:] = rows
        return
    values = to_float32(rows)
    bits = values.view(np.uint32)
    rounded = (bits >> 16) & 1
    rounded += 0x7FFF
    rounded += bits
    is_nan = np.isnan(values)
    if is_nan.any():  # rounding could carry one into an infinity: it is cut, and made quiet
        rounded[is_nan] = bits[is_nan] | np.uint32(0x0040_0000)
    rounded >>= 16
    out.view(np.uint16)[:] = rounded


def write_q8_0(rows: Rows, out: NDArray[np.uint8]) -> None:
    """Write rows as Q8_0: a scale in F16 and 32 integers of 8 bits a block.

    Args:
        rows: their length is a multiple of 32.
        out: (rows, 34 / 32 * columns).
    """
    scale = _largest(rows) / np.float32(127)
    target = out.reshape(-1, BLOCK_BYTES)
    with np.errstate(all="ignore"):  # what is not finite shows in the scales
        inverse = np.float32(1) / scale
        inverse[scale == 0] = 0
        scaled = to_float32(rows).reshape(-1, BLOCK) * inverse[:, None]
        rounding = scaled.view(np.uint32) & _SIGN
        rounding |= _NEARLY_HALF
        scaled += rounding.view(np.float32)
        target[:, :2] = scale.astype(np.float16).view(np.uint8).reshape(-1, 2)
        target[:, 2:] = scaled.astype(np.int8).view(np.uint8)


def has_finite_scales(out: NDArray[np.uint8]) -> bool:
    """Return whether every scale among blocks of Q8_0 is finite."""
    scales = np.ascontiguousarray(out.reshape(-1, BLOCK_BYTES)[:, :2]).view(np.uint16)
    return bool(((scales & 0x7C00) != 0x7C00).all())


def _largest(rows: Rows) -> NDArray[np.float32]:
    """Return the largest magnitude of every block; not a number where a block holds such a one."""
    if rows.dtype != np.uint16:
        magnitudes: NDArray[np.float32] = np.abs(to_float32(rows)).reshape(-1, BLOCK)
        largest: NDArray[np.float32] = magnitudes.max(axis=1)
        return largest
    found = (rows & np.uint16(0x7FFF)).reshape(-1)  # ordered as the numbers that they mean
    while found.size > rows.size // BLOCK:  # of every two neighbours the larger: numpy's own
        pairs = found.view(np.uint32)  # maximum along short rows takes three times as long
        found = np.maximum(pairs >> 16, pairs & np.uint32(0xFFFF)).astype(np.uint16)
    return to_float32(found)


def to_float32(rows: Rows) -> NDArray[np.float32]:
    """Return rows as float32, exactly; those that are it already, as they are."""
    if rows.dtype == np.uint16:
        wide = rows.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if rows.dtype == np.float16:
        return _float_of_half()[rows.view(np.uint16)]
    return rows


def _half_of_bfloat16(rows: Rows) -> NDArray[np.uint16]:
    """Return the bits of float16 for bits of bfloat16.

    Where both have full precision, the exponent moves and nothing is rounded; the few others are
    looked up.
    """
    found = rows & np.uint16(0x7FFF)
    found -= np.uint16(SMALLEST_FULL << 7)  # what is smaller wraps around and is large
    others = np.flatnonzero(found >= np.uint16(FULL_EXPONENTS << 7))
    found += np.uint16(1 << 7)
    found <<= 3
    found |= rows & np.uint16(0x8000)
    if others.size:
        found.reshape(-1)[others] = _halves()[rows.reshape(-1)[others]]
    return found


@cache
def _halves() -> NDArray[np.uint16]:
    """Return the bits of float16 for all bits of bfloat16."""
    every = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(over="ignore"):
        return to_float32(every).astype(np.float16).view(np.uint16)


@cache
def _float_of_half() -> NDArray[np.float32]:
    """Return float32 for all bits of float16."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


WRITERS: dict[str, Callable[[Rows, NDArray[np.uint8]], None]] = {
    "F32": write_f32,
    "F16": write_f16,
    "BF16": write_bf16,
    "Q8_0": write_q8_0,
}
"""What writes rows as each of these types."""
