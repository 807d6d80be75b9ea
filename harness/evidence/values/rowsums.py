"""Sums over rows of raw values: squares, a sum of bits that equal rows share, and zeros."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.evidence.values.arrays import FLOAT_TYPES, decode
from harness.evidence.values.bits import FORMS, Bytes, find_zero_rows
from harness.facts.checkpoint import Tensor

ROW_LIMIT_BYTES = 1 << 20
"""Longest row that is summed."""
ROWS_LIMIT = 1 << 22
"""Most rows of one tensor that are summed; the sums take 12 bytes each."""
LEAST_WIDTH = 8
"""Shortest last dimension that is a row; below (a kernel of 3 x 3) the first dimension counts."""
_THIRTEEN, _THREE = np.uint32(13), np.uint32(3)
_HALF_SIZE = np.uint32(0x0FFF_E000)
_HALF_BIAS = np.float32(2.0**112)
_LOCAL = threading.local()


@dataclass(frozen=True, kw_only=True)
class RowSums:
    """Sums over consecutive rows."""

    squares: NDArray[np.float32]
    """Sum of squares of each row."""
    marks: NDArray[np.uint64]
    """Sum of the bits of each row: equal in equal rows."""
    zero: NDArray[np.bool_]
    """Whether a row holds nothing but zeros."""
    zeros: int
    """Values that are zero."""


def shape_rows(tensor: Tensor) -> tuple[int, int] | None:
    """Return (rows, values of a row), or None for a tensor that is not summed by rows."""
    if tensor.dtype in ("C64", "F8_E8M0") or not tensor.elements:
        return None
    shape = tensor.shape or (1,)
    if len(shape) == 1:
        rows, width = 1, shape[0]
    elif shape[-1] >= LEAST_WIDTH:
        rows, width = tensor.elements // shape[-1], shape[-1]
    else:
        rows, width = shape[0], tensor.elements // shape[0]
        if width < LEAST_WIDTH:
            return None
    row_bytes, rest = divmod(tensor.end - tensor.start, rows)
    # A header may promise more values than there are bytes, or rows that end inside a byte.
    is_whole = row_bytes > 0 and not rest
    return (
        (rows, width) if is_whole and row_bytes <= ROW_LIMIT_BYTES and rows <= ROWS_LIMIT else None
    )


def sum_rows(raw: Bytes, dtype: str, rows: int) -> RowSums:
    """Return the sums over `rows` equal parts of a chunk."""
    squares = _sum_squares(raw, dtype, rows)
    zero = np.zeros(rows, np.bool_)
    doubtful = np.flatnonzero(squares == 0)
    if doubtful.size:  # squares of tiny values vanish too
        part = np.ascontiguousarray(raw.reshape(rows, -1)[doubtful])
        zero[doubtful] = find_zero_rows(part, dtype, doubtful.size)
    plain = raw.view(FORMS[dtype].unsigned)
    is_zero = _scratch(-(-plain.size // 4)).view(np.bool_)[: plain.size]
    zeros = int(np.count_nonzero(np.equal(plain, 0, out=is_zero)))
    return RowSums(squares=squares, marks=_mark(raw, rows), zero=zero, zeros=zeros)


def _sum_squares(raw: Bytes, dtype: str, rows: int) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if dtype == "BF16":
            values = _scratch(raw.size // 2).view(np.float32)
            np.copyto(values, raw.view(FLOAT_TYPES[dtype]))
            return _dot_rows(values.reshape(rows, -1))
        if dtype == "F16" and (raw.size // rows) % 4 == 0:
            return _sum_halves(raw.view("<u4"), rows)
        if dtype == "F64":
            wide = raw.view("<f8").reshape(rows, -1)
            sums: NDArray[np.float32] = np.einsum("ij,ij->i", wide, wide).astype(np.float32)
            return sums
        if dtype == "F32":
            return _dot_rows(raw.view("<f4").reshape(rows, -1))
        if dtype.startswith("F8") and (raw.size // rows) % 2 == 0:
            pairs = np.take(_pair_squares(dtype), raw.view("<u2"), mode="clip")
            total: NDArray[np.float32] = np.add.reduce(pairs.reshape(rows, -1), axis=1)
            return total
        return _dot_rows(decode(raw, dtype).reshape(rows, -1))


def _sum_halves(both: NDArray[np.uint32], rows: int) -> NDArray[np.float32]:
    """Return the sums of squares of fp16 values, two of which lie in each integer.

    Exponent and fraction are put where float32 has them, whose bias is larger by 112: numpy's own
    conversion takes four times as long.
    """
    made = _scratch(both.size)
    values = made.view(np.float32)
    total = np.zeros(rows, np.float32)
    for shift, by in ((np.left_shift, _THIRTEEN), (np.right_shift, _THREE)):
        shift(both, by, out=made)
        np.bitwise_and(made, _HALF_SIZE, out=made)
        np.multiply(values, _HALF_BIAS, out=values)
        total += _dot_rows(values.reshape(rows, -1))
    return total


@cache
def _pair_squares(dtype: str) -> NDArray[np.float32]:
    """Return the sum of the squares of both values in each of the 65,536 pairs of bytes."""
    one = decode(np.arange(256, dtype=np.uint8), dtype) ** 2
    return np.add.outer(one, one).ravel()


def _scratch(count: int) -> NDArray[np.uint32]:
    """Return this thread's room for `count` integers.

    Arrays of this size that are made anew are pages that the system has to clear each time.
    """
    held: NDArray[np.uint32] | None = getattr(_LOCAL, "room", None)
    if held is None or held.size < count:
        held = np.empty(count, np.uint32)
        _LOCAL.room = held
    return held[:count]


def _dot_rows(values: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32]
    if hasattr(np, "vecdot"):  # numpy 2; three times as fast
        found = np.vecdot(values, values)
    else:
        found = np.einsum("ij,ij->i", values, values)
    return found


def _mark(raw: Bytes, rows: int) -> NDArray[np.uint64]:
    width = raw.size // rows
    size = next(one for one in (8, 4, 2, 1) if width % one == 0)
    words: NDArray[Any] = raw.view(f"<u{size}").reshape(rows, -1)
    found: NDArray[np.uint64] = words.sum(axis=1, dtype=np.uint64)
    return found
