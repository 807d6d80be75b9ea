"""Tensor values in numpy, read in chunks: every float type of the format, without torch.

Files are read, not mapped: a file that shrinks while it is examined gives an error, not a crash.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from harness.evidence.files.header_only import require_values
from harness.evidence.values.blocks import BLOCKS, decode_blocks
from harness.facts.checkpoint import Tensor
from harness.registry import Missing

Floats = NDArray[np.float32]
"""Decoded values."""
CHUNK_ELEMENTS = 1 << 18
"""Numbers decoded at once; a megabyte of float32 stays in the cache of one core."""
EPSILON = {
    "F64": 2.0**-53,
    "F32": 2.0**-24,
    "F16": 2.0**-11,
    "BF16": 2.0**-8,
    "F8_E4M3": 2.0**-4,
    "F8_E5M2": 2.0**-3,
}
"""Largest relative rounding error of each float type."""
FLOAT_TYPES: dict[str, Any] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
"""numpy types of the float types that hold whole bytes."""
INTEGER_TYPES = {
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "BOOL": np.dtype("u1"),
}
"""numpy types of the integer types."""


def read_bytes(folder: Path, tensor: Tensor, start: int, stop: int) -> NDArray[np.uint8]:
    """Return the bytes `start:stop` of a tensor.

    Raises:
        Missing: the file is shorter than that, or its values are not at hand.
    """
    require_values(folder)
    try:
        found = np.fromfile(
            folder / tensor.file, np.uint8, count=stop - start, offset=tensor.start + start
        )
    except OSError as problem:
        raise Missing(f"{tensor.file} cannot be read: {problem}") from problem
    if found.size != stop - start:
        raise Missing(f"{tensor.file} ends inside {tensor.name}")
    return found


@cache
def _byte_table(dtype: str) -> Floats:
    """Return the value of each of the 256 bytes of an 8-bit float type."""
    table: Floats = np.arange(256, dtype=np.uint8).view(FLOAT_TYPES[dtype]).astype(np.float32)
    return table


def decode(raw: NDArray[np.uint8], dtype: str) -> Floats:
    """Return bytes of one type as float32; values of float64 beyond its range become infinite."""
    if dtype == "BF16":
        wide: Floats = raw.view(FLOAT_TYPES[dtype]).astype(np.float32)
        return wide
    if dtype in BLOCKS:
        return decode_blocks(raw, dtype)
    if dtype.startswith("F8"):
        return _byte_table(dtype)[raw]
    kind = FLOAT_TYPES.get(dtype) or INTEGER_TYPES[dtype]
    with np.errstate(over="ignore", invalid="ignore"):
        return raw.view(kind).astype(np.float32)


def iterate_rows(
    folder: Path, tensor: Tensor, rows: int | None = None, *, every: int = 1
) -> Iterator[Floats]:
    """Yield the values as blocks of whole rows, shape (rows, columns); a vector is one column wide.

    Args:
        folder: where the file is.
        tensor: what to read.
        rows: rows per block; by default as many as fit `CHUNK_ELEMENTS`.
        every: read the first of so many blocks, and pass over the others.
    """
    height = tensor.shape[0] if tensor.shape else 1
    width = tensor.elements // height if height else 0
    if not width:
        return
    row_bytes = (tensor.end - tensor.start) // height
    step = rows or max(1, CHUNK_ELEMENTS // width)
    for first in range(0, height, step * every):
        last = min(height, first + step)
        raw = read_bytes(folder, tensor, first * row_bytes, last * row_bytes)
        yield decode(raw, tensor.dtype).reshape(last - first, width)


def read_array(folder: Path, tensor: Tensor) -> Floats:
    """Return a whole tensor in its own shape."""
    raw = read_bytes(folder, tensor, 0, tensor.end - tensor.start)
    return decode(raw, tensor.dtype).reshape(tensor.shape)
