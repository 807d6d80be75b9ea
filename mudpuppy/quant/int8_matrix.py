"""Symmetric int8 with one scale a row: how matrices become levels, and how levels are multiplied.

The definition, complete enough to write it again in numpy (`t` is float32, a row at a time; a row
is an output channel of a weight, or the vector of one token):

    scale    max|t| / 127, float32, shape (rows, 1); 1 where the row is zero
    level    clip(rint(t / scale), -127, 127), rint to even
    product  (level(x) @ level(w).T) * (scale(x) * scale(w).T), the sum in integers

Level -128 is never used, so that the grid is symmetric. A scale may also be given, one for all rows
or one a row: what lies beyond 127 of it is then clipped. The sums are `mudpuppy.quant.int_sums`,
which do not depend on what computes them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mudpuppy.errors import EngineError
from mudpuppy.quant.int_sums import sum_products

SCHEME = "int8-symmetric-per-channel-dynamic-per-token"
"""Name of the scheme, as it is written into a checkpoint's provenance."""
STATIC_SCHEME = "int8-symmetric-per-channel-static-per-tensor"
"""The same, where the activations of a layer share a scale that training has found."""
BITS = 8
"""Bits per level."""
MAX_LEVEL = 127
"""Largest level; the smallest is its negative."""
SMALLEST_SCALE = 2.0**-126
"""Scales are never subnormal: dividing by one would overflow."""


class Int8Rows(NamedTuple):
    """A matrix as levels, one scale a row or one for all of it."""

    levels: Tensor
    """(rows, columns): whole numbers from -127 to 127, float32 or int8."""
    scales: Tensor
    """float32, (rows, 1) or (1, 1): the value of level 1."""

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the rounded matrix in `dtype`, computed in float32."""
        return (self.levels.to(torch.float32) * self.scales).to(dtype)


def scales_of(peaks: Tensor) -> Tensor:
    """Return the scales (float32) whose largest level stands for `peaks`; 1 where they are 0."""
    scales = (peaks / MAX_LEVEL).clamp(min=SMALLEST_SCALE)
    return torch.where(peaks == 0, torch.ones_like(scales), scales)


def peaks_of(matrix: Tensor) -> Tensor:
    """Return the largest absolute value of each row of a matrix (rows, columns): (rows, 1)."""
    exact = matrix.detach().to(torch.float32)
    if not exact.shape[1]:
        return exact.new_zeros(exact.shape[0], 1)
    return exact.abs().amax(dim=1, keepdim=True)


def round_rows(matrix: Tensor, scales: Tensor | None = None) -> Int8Rows:
    """Round a matrix (rows, columns) to levels, kept as float32.

    A row with a NaN or an infinity gets NaN for its scale: no level could tell of it.

    Args:
        matrix: in any floating type.
        scales: float32, (rows, 1) or (1, 1); by default each row's own.
    """
    exact = matrix.detach().to(torch.float32)
    if scales is None:
        own = scales_of(peaks_of(exact))
    else:
        whole = exact.isfinite().all(dim=1, keepdim=True)
        own = torch.where(whole, scales, torch.full_like(scales, torch.nan))
    return Int8Rows((exact / own).round().clamp(-MAX_LEVEL, MAX_LEVEL), own)


def quantise_weight(weight: Tensor, scales: Tensor | None = None) -> Int8Rows:
    """Round a weight (out, in) to int8 levels, on its own scales or on given ones (out, 1).

    Raises:
        EngineError: the weight holds a NaN or an infinity.
    """
    if not bool(torch.isfinite(weight).all()):
        raise EngineError("the weight holds a NaN or an infinity, so it cannot be quantised")
    levels, own = round_rows(weight, scales)
    return Int8Rows(levels.to(torch.int8), own)


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
    total = sum_products(left.levels, right.levels).to(torch.float32)
    return (total * (left.scales * right.scales.t())).to(dtype)


def scheme(*, static: bool = False) -> dict[str, Any]:
    """Return what a reader must know of the scheme.

    Args:
        static: whether the activations of a layer share one scale.
    """
    told = "static per tensor, int8" if static else "dynamic per token, int8"
    return {"scheme": STATIC_SCHEME if static else SCHEME, "bits": BITS, "activations": told}
