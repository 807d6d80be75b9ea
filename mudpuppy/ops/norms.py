"""LayerNorm and RMSNorm whose output is int8 levels, ready for `mudpuppy.ops.gemm.qgemm`.

    layer norm   (x - mean(x)) / sqrt(var(x) + eps) * weight + bias
    RMS norm     x / sqrt(mean(x^2) + eps) * weight

over the last dimension, in float32, with a scale for every token of the result. A norm does not
change when its input is scaled, but for eps: so levels are normalised as the whole numbers that
they are, and other inputs are brought to at most 1 first. Neither overflows, however large x is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mudpuppy.errors import EngineError
from mudpuppy.ops.levels import Levels, quantise_per_channel


def quantised_layer_norm(
    x: Tensor | Levels,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    symmetric: bool = True,
) -> Levels:
    """Return LayerNorm (Ba et al., arXiv 1607.06450) of `x` as int8 levels.

    Args:
        x: (tokens, features); floating, or levels with one scale or one a token.
        weight: (features), or None for 1.
        bias: (features), or None for 0.
        eps: added to the variance, in the units of x squared.
        symmetric: whether 0 is level 0 in the result.

    Returns:
        (tokens, features), with a scale for each token.

    Raises:
        EngineError: the shapes do not fit, there are no features, or the input or the result is
            not finite.
    """
    unit, per_unit = _unit(x, weight, bias)
    centred = unit - unit.mean(dim=1, keepdim=True)
    normal = centred * _inverse_root(centred, eps, per_unit)
    return _finished(normal, weight, bias, symmetric=symmetric)


def quantised_rms_norm(
    x: Tensor | Levels, weight: Tensor | None = None, *, eps: float = 1e-6, symmetric: bool = True
) -> Levels:
    """Return RMSNorm (Zhang and Sennrich, arXiv 1910.07467) of `x` as int8 levels.

    Args:
        x: (tokens, features); floating, or levels with one scale or one a token.
        weight: (features), or None for 1.
        eps: added to the mean square, in the units of x squared.
        symmetric: whether 0 is level 0 in the result.

    Returns:
        (tokens, features), with a scale for each token.

    Raises:
        EngineError: as `quantised_layer_norm`.
    """
    unit, per_unit = _unit(x, weight, None)
    return _finished(unit * _inverse_root(unit, eps, per_unit), weight, None, symmetric=symmetric)


def _unit(x: Tensor | Levels, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the inputs in units of their own, float32, and what a unit is worth (tokens or 1, 1).

    Raises:
        EngineError: the shapes do not fit, or something is not finite.
    """
    shape = tuple(x.shape)
    if len(shape) != 2 or not shape[1]:
        raise EngineError(f"a norm takes (tokens, features), got {list(shape)}")
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None and tuple(part.shape) != shape[1:]:
            raise EngineError(f"a {name} of shape {list(part.shape)} does not fit {list(shape)}")
    if isinstance(x, Levels):
        values = x.values.to(torch.float32)
        if x.zero is not None:
            values = values - x.zero.to(torch.float32)
        return values, x.scale
    exact = x.detach().to(torch.float32)
    if not bool(torch.isfinite(exact).all()):
        raise EngineError("the input of a norm holds a NaN or an infinity")
    peak = exact.abs().amax(dim=1, keepdim=True)
    # below the smallest normal number a quotient would overflow
    peak = torch.where(peak > 0, peak.clamp(min=2.0**-126), torch.ones_like(peak))
    return exact / peak, peak


def _inverse_root(centred: Tensor, eps: float, per_unit: Tensor) -> Tensor:
    """Return 1 / sqrt(mean square + eps), in the units of the input (tokens, 1)."""
    # in two steps: the square of a small unit is 0, and eps / 0 no number
    own_eps = (eps**0.5 / per_unit) ** 2
    if eps > 0:
        # that of a large unit is 0, and a constant row 0 / 0; no other variance is so small
        own_eps = own_eps.clamp(min=2.0**-126)
    return torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + own_eps)


def _finished(
    normal: Tensor, weight: Tensor | None, bias: Tensor | None, *, symmetric: bool
) -> Levels:
    if weight is not None:
        normal = normal * weight.detach().to(torch.float32)
    if bias is not None:
        normal = normal + bias.detach().to(torch.float32)
    return quantise_per_channel(normal, 0, symmetric=symmetric)
