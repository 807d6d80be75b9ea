"""Tensors as int8 levels: per tensor or per channel, symmetric or asymmetric.

    symmetric    scale = max|t| / 127,        level = clip(rint(t / scale), -127, 127)
    asymmetric   scale = (hi - lo) / 255,     level = clip(rint(t / scale) + zero, -128, 127),
                 zero = clip(rint(-128 - lo / scale), -128, 127); lo <= 0 <= hi, so that 0 is exact
    value        (level - zero) * scale

Everything is computed in float32, `rint` rounds ties to even, and where a range is 0 its scale is 1
(Jacob et al., arXiv 1712.05877, equation 1; the helpers are those that seed 001 names).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from mudpuppy.errors import EngineError
from mudpuppy.quant.int8_matrix import MAX_LEVEL, SMALLEST_SCALE, scales_of

LOWEST, HIGHEST = -128, 127
"""The levels of an asymmetric grid; a symmetric one leaves -128 out."""


@dataclass(frozen=True)
class Levels:
    """A tensor as int8 levels."""

    values: Tensor
    """int8, in the shape of the tensor."""
    scale: Tensor
    """float32, broadcastable to `values`: what one level is worth."""
    zero: Tensor | None = None
    """int32, in the shape of `scale`: the level of 0; None for level 0."""

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return self.values.shape


def quantise_per_tensor(tensor: Tensor, *, symmetric: bool = True) -> Levels:
    """Round a tensor to int8 with one scale.

    Args:
        tensor: floating, of any shape, also empty.
        symmetric: whether 0 is level 0.

    Returns:
        Levels with a scale of as many dimensions as `tensor`, each of size 1.

    Raises:
        EngineError: the tensor is not floating, or holds a NaN or an infinity.
    """
    return _quantise(tensor, tuple(range(tensor.dim())), symmetric=symmetric)


def quantise_per_channel(tensor: Tensor, axis: int = 0, *, symmetric: bool = True) -> Levels:
    """Round a tensor to int8 with one scale for each index of `axis`.

    Args:
        tensor: floating, with at least one dimension.
        axis: 0 for the outputs of a weight (out, in) and for the tokens of inputs (tokens, in).
        symmetric: whether 0 is level 0.

    Returns:
        Levels with a scale of as many dimensions as `tensor`, of size 1 but for `axis`.

    Raises:
        EngineError: there is no such axis, the tensor is not floating, or holds a NaN or an
            infinity.
    """
    if not -tensor.dim() <= axis < tensor.dim():
        raise EngineError(f"a tensor of shape {list(tensor.shape)} has no axis {axis}")
    kept = axis % tensor.dim()
    others = tuple(place for place in range(tensor.dim()) if place != kept)
    return _quantise(tensor, others, symmetric=symmetric)


def dequantise(levels: Levels, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the tensor that levels stand for, computed in float32 and rounded once to `dtype`.

    The ends of an asymmetric grid may lie half a step beyond the tensor that it was made for: what
    is larger than the largest number of `dtype`, floating, becomes that.
    """
    values = levels.values.to(torch.float32)
    if levels.zero is not None:
        values = values - levels.zero.to(torch.float32)
    largest = min(torch.finfo(torch.float32).max, torch.finfo(dtype).max)
    return (values * levels.scale).clamp(-largest, largest).to(dtype)


def fake_quantise(tensor: Tensor, axis: int | None = None, *, symmetric: bool = True) -> Tensor:
    """Return `dequantise(quantise(tensor))` in its type; the gradient passes as it is.

    Args:
        tensor: floating.
        axis: as for `quantise_per_channel`; None for one scale.
        symmetric: whether 0 is level 0.

    Raises:
        EngineError: as quantising does.
    """
    result = _Rounding.apply(tensor, axis, symmetric)  # type: ignore[no-untyped-call]
    return cast(Tensor, result)


class _Rounding(torch.autograd.Function):
    """Rounding whose slope is taken for 1 (Bengio et al., arXiv 1308.3432); nothing is clipped."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, axis: int | None, symmetric: bool) -> Tensor:
        del ctx
        if axis is None:
            return dequantise(quantise_per_tensor(tensor, symmetric=symmetric), tensor.dtype)
        return dequantise(quantise_per_channel(tensor, axis, symmetric=symmetric), tensor.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        del ctx
        return grads[0], None, None


def _quantise(tensor: Tensor, over: tuple[int, ...], *, symmetric: bool) -> Levels:
    exact = _exact(tensor)
    if symmetric:
        scale = scales_of(_reduced(exact.abs(), over, torch.amax))
        levels = (exact / scale).round().clamp(-MAX_LEVEL, MAX_LEVEL)
        return Levels(levels.to(torch.int8), scale)
    low = _reduced(exact, over, torch.amin).clamp(max=0)
    high = _reduced(exact, over, torch.amax).clamp(min=0)
    steps = HIGHEST - LOWEST
    # each end by itself: their difference may be larger than the largest number
    scale = (high / steps - low / steps).clamp(min=SMALLEST_SCALE)
    scale = torch.where((low == 0) & (high == 0), torch.ones_like(scale), scale)
    zero = (LOWEST - low / scale).round().clamp(LOWEST, HIGHEST)
    levels = ((exact / scale).round() + zero).clamp(LOWEST, HIGHEST)
    return Levels(levels.to(torch.int8), scale, zero.to(torch.int32))


def _exact(tensor: Tensor) -> Tensor:
    """Return the tensor in float32.

    Raises:
        EngineError: it is not floating, or not finite there.
    """
    if not tensor.is_floating_point():
        raise EngineError(f"a floating tensor can be quantised, this one is {tensor.dtype}")
    exact = tensor.detach().to(torch.float32)
    if not bool(torch.isfinite(exact).all()):
        raise EngineError("the tensor holds a NaN or an infinity, which no int8 level can tell")
    return exact


def _reduced(exact: Tensor, over: tuple[int, ...], reduce: Any) -> Tensor:
    """Return the largest or smallest values over some dimensions, kept as size 1; 0 of nothing."""
    shape = [1 if place in over else size for place, size in enumerate(exact.shape)]
    if not exact.numel():
        return exact.new_zeros(shape)
    return cast(Tensor, reduce(exact, dim=over, keepdim=True)) if over else exact
