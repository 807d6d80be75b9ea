"""What rounding to a float type does to values, in numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from harness.evidence.values.arrays import EPSILON, Floats

PRECISIONS = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
"""Types by the names that provenance uses."""
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
