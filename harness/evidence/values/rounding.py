"""What rounding does to values: to a float type, and to the engine's blockwise int4 (in numpy)."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from harness.evidence.values.arrays import EPSILON, Floats

INT4_SCHEME = "int4-symmetric-blockwise"
"""The scheme that `quantise_int4` undoes and redoes, as provenance names it."""
PRECISIONS = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
"""Types by the names that provenance uses."""
_LEVELS = np.float32(7)
_INFINITE = 0x7F80_0000


def round_to(values: Floats, dtype: str, stored: str = "F32") -> Floats:
    """Return float32 values as they read after a stay in another float type.

    Args:
        values: what is rounded.
        dtype: the type; of types other than bf16 and fp16 the values come back as they are.
        stored: the type that they were read from: nothing is done where it is the same.
    """
    if dtype == stored:
        return values
    with np.errstate(over="ignore"):
        if dtype == "BF16":
            return _round_bf16(values)
        if dtype == "F16":
            return values.astype(np.float16).astype(np.float32)
    return values


def _round_bf16(values: Floats) -> Floats:
    """Round to nearest, ties to even: five times as fast as the conversion of ml_dtypes."""
    bits = values.view(np.uint32)
    if int(bits.view(np.int32).max()) > _INFINITE or int(bits.max()) > _INFINITE | 1 << 31:
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)  # a NaN could overflow
    made = bits >> np.uint32(16)
    made &= np.uint32(1)
    made += np.uint32(0x7FFF)
    made += bits
    made &= np.uint32(0xFFFF_0000)
    rounded: Floats = made.view(np.float32)
    return rounded


def coarser(*dtypes: str) -> str:
    """Return the type with the largest rounding error; F32 when none is a known float type."""
    return max(("F32", *dtypes), key=lambda name: EPSILON.get(name, 0.0))


def quantise_int4(values: Floats, block_size: int) -> Floats:
    """Return a matrix after quantisation to int4 and back.

    Each row is cut into blocks of `block_size` columns (the last may be short); the scale is
    absmax / 7 in float32, levels are rounded to even within -7..7.
    """
    rows, columns = values.shape
    padded = np.pad(values, ((0, 0), (0, -columns % block_size))).reshape(rows, -1, block_size)
    scale = np.abs(padded).max(axis=2, keepdims=True) / _LEVELS
    divisor = np.where(scale == 0, np.float32(1), scale)
    levels = np.clip(np.rint(padded / divisor), -_LEVELS, _LEVELS)
    dense: Floats = (levels * scale).reshape(rows, -1)[:, :columns]
    return dense


def int4_block_size(origin: dict[str, Any]) -> int | None:
    """Return the block size if provenance says the adapter was trained on this int4, else None."""
    scheme = origin.get("quantisation")
    if not isinstance(scheme, dict) or scheme.get("scheme") != INT4_SCHEME:
        return None
    size = scheme.get("block_size")
    return size if type(size) is int and 1 <= size <= 1 << 20 else None
