"""Symmetric int8 with one scale a row: how matrices become levels, and how levels are multiplied.

The definition, complete enough to write it again in numpy (`t` is float32, a row at a time; a row
is an output channel of a weight, or the vector of one token):

    scale    max|t| / 127, float32, shape (rows, 1); 1 where the row is zero
    level    clip(rint(t / scale), -127, 127), rint to even
    product  (level(x) @ level(w).T) * (scale(x) * scale(w).T), the sum in integers

Level -128 is never used, so that the grid is symmetric. A sum of integers has no rounding, so what
computes it (int8 units, fp32 where it is exact, fp64) does not change a bit of the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mudpuppy.errors import EngineError

SCHEME = "int8-symmetric-per-channel-dynamic-per-token"
"""Name of the scheme, as it is written into a checkpoint's provenance."""
BITS = 8
"""Bits per level."""
MAX_LEVEL = 127
"""Largest level; the smallest is its negative."""
EXACT_IN_FP32 = 2**24 // MAX_LEVEL**2
"""Longest sum of products of levels that fp32 holds exactly, in terms: 1040."""
SMALLEST_SCALE = 2.0**-126
"""Scales are never subnormal: dividing by one would overflow."""


class Int8Rows(NamedTuple):
    """A matrix as levels, one scale a row."""

    levels: Tensor
    """(rows, columns): whole numbers from -127 to 127, float32 or int8."""
    scales: Tensor
    """float32, (rows, 1): the value of level 1."""

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the rounded matrix in `dtype`, computed in float32."""
        return (self.levels.to(torch.float32) * self.scales).to(dtype)


def round_rows(matrix: Tensor) -> Int8Rows:
    """Round a matrix (rows, columns) to levels, kept as float32; NaN stays NaN."""
    exact = matrix.detach().to(torch.float32)
    peak = exact.abs().amax(dim=1, keepdim=True)
    scales = (peak / MAX_LEVEL).clamp(min=SMALLEST_SCALE)
    scales = torch.where(peak == 0, torch.ones_like(scales), scales)
    return Int8Rows((exact / scales).round().clamp(-MAX_LEVEL, MAX_LEVEL), scales)


def quantise_weight(weight: Tensor) -> Int8Rows:
    """Round a weight (out, in) to int8 levels.

    Raises:
        EngineError: the weight holds a NaN or an infinity.
    """
    if not bool(torch.isfinite(weight).all()):
        raise EngineError("the weight holds a NaN or an infinity, so it cannot be quantised")
    levels, scales = round_rows(weight)
    return Int8Rows(levels.to(torch.int8), scales)


def relative_error(weight: Tensor, rows: Int8Rows) -> float:
    """Return the Frobenius norm of what rounding changed, over that of the weight."""
    exact = weight.detach().to(torch.float32)
    norm = float(exact.norm())
    return float((rows.dequantise() - exact).norm()) / norm if norm else 0.0


def multiply(left: Int8Rows, right: Int8Rows, dtype: torch.dtype) -> Tensor:
    """Return `left @ right.T` (m, n) of matrices (m, k) and (n, k), in `dtype`.

    Args:
        left: levels in float32 or int8.
        right: levels in float32 or int8.
        dtype: of the result, which is made in float32 and rounded once.
    """
    total = _sum_products(left.levels, right.levels)
    return (total.to(torch.float32) * (left.scales * right.scales.t())).to(dtype)


def _sum_products(left: Tensor, right: Tensor) -> Tensor:
    """Return the sums of products of levels; exact, whatever computes them."""
    device = left.device.type
    if right.dtype == torch.int8 and device == "cpu" and hasattr(torch, "_int_mm"):
        return torch._int_mm(left.to(torch.int8), right.t())
    exact = torch.float32 if left.shape[1] <= EXACT_IN_FP32 else torch.float64
    with torch.autocast(device, enabled=False):
        return left.to(exact) @ right.to(exact).t()


def scheme() -> dict[str, Any]:
    """Return what a reader must know of the scheme."""
    return {"scheme": SCHEME, "bits": BITS, "activations": "dynamic per token, int8"}
