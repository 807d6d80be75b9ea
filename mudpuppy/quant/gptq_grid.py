"""The levels that the weights of a GPTQ group are rounded to, and the search for their span."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mudpuppy.errors import EngineError
from mudpuppy.quant.gptq_pack import PACKED_BITS

Clip = Literal["none", "mse"]
"""Whether the levels span every weight of a group, or what leaves the least squared error."""
SMALLEST_SCALE = 2.0**-24
"""The smallest float16 above 0."""
SHRINKS = tuple(1 - step / 40 for step in range(1, 25))
"""Shares of the full span that the search tries: from 0.975 down to 0.4."""


@dataclass(frozen=True, kw_only=True)
class GptqConfig:
    """The grid that weights are rounded to, and how the rounding goes."""

    bits: int = 4
    """Width of a level: 2, 3, 4 or 8."""
    group_size: int = 128
    """Inputs that share a scale and a zero; -1 for all inputs of an output."""
    symmetric: bool = True
    """Whether the zero is the middle level; else it is chosen for every group."""
    act_order: bool = False
    """Round the columns with the largest inputs first."""
    static_groups: bool = True
    """With `act_order`: groups stay those of neighbouring inputs. Otherwise they are made of
    inputs in the order of the rounding, which readers must look up (`desc_act`)."""
    damping: float = 0.01
    """Share of the Hessian's mean diagonal that is added to it; grows tenfold while it fails."""
    clip: Clip = "none"
    """`mse` shrinks the span of a group to where its squared rounding error is least."""
    block_size: int = 128
    """Columns that are rounded before their errors reach the rest of the matrix."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one of them makes no sense.
        """
        if self.bits not in PACKED_BITS:
            raise ValueError(f"bits must be one of {PACKED_BITS}, got {self.bits}")
        if self.group_size < 1 and self.group_size != -1:
            raise ValueError(f"group_size must be -1 or at least 1, got {self.group_size}")
        if self.damping < 0 or self.block_size < 1:
            raise ValueError("damping must be at least 0, and block_size at least 1")

    @property
    def max_level(self) -> int:
        """The largest level; the smallest is 0."""
        return int(2**self.bits) - 1

    @property
    def moves_groups(self) -> bool:
        """Whether the inputs of a group need not be neighbours."""
        return self.act_order and not self.static_groups


class Grid(NamedTuple):
    """The levels of one group, for every output."""

    scale: Tensor
    """(out,), float16 values in the type of the computation."""
    zero: Tensor
    """(out,), whole numbers in the type of the computation."""

    def round(self, weight: Tensor, max_level: int) -> Tensor:
        """Return the nearest levels of weights (..., out)."""
        return (weight / self.scale).add_(self.zero).round_().clamp_(0, max_level)

    def value(self, level: Tensor) -> Tensor:
        """Return what levels (..., out) stand for."""
        return (level - self.zero).mul_(self.scale)


def make_grid(weight: Tensor, config: GptqConfig) -> Grid:
    """Return the grid of the weights (inputs, out) of one group.

    The scale is rounded to float16 here, before any error is computed: what is stored is then what
    the errors were made good for.

    Raises:
        EngineError: a weight is too large for a float16 scale.
    """
    low = weight.amin(dim=0).clamp_max_(0)
    high = weight.amax(dim=0).clamp_min_(0)
    grid = _spanning(low, high, config)
    if not bool(torch.isfinite(grid.scale).all()):
        raise EngineError("a weight is too large for a float16 scale")
    return _shrunk(weight, low, high, grid, config) if config.clip == "mse" else grid


def why_too_small(weight: Tensor, config: GptqConfig) -> str:
    """Return why the weights of a whole matrix are too small for the grid, or an empty text.

    So small a scale is a multiple of 2^-24, at most half of that off. Times the levels this must be
    no more than half of the largest step of the matrix. Single groups may need smaller scales: what
    they lose is as little beside that step.
    """
    if not weight.numel():
        return ""
    low, high = (float(end) for end in weight.detach().aminmax())
    span = 2 * max(high, -low) if config.symmetric else max(high, 0) - min(low, 0)
    if not 0 < span / config.max_level < SMALLEST_SCALE * config.max_level:
        return ""
    largest = max(high, -low)
    return f"its largest weight, {largest:.3g}, is too small for float16 scales"


def _spanning(low: Tensor, high: Tensor, config: GptqConfig) -> Grid:
    """Return the grid whose levels reach from `low` to `high`."""
    if config.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    else:
        # the zero must be at least 1: version 1 of the format stores one less
        low = torch.minimum(low, -high / (config.max_level - 1))
    scale = (high - low) / config.max_level
    scale = torch.where(scale == 0, torch.ones_like(scale), scale.clamp_min(SMALLEST_SCALE))
    scale = scale.to(torch.float16).to(low.dtype)
    if config.symmetric:
        zero = torch.full_like(scale, (config.max_level + 1) // 2)
    else:
        zero = (-low / scale).round_().clamp_(1, config.max_level)
    return Grid(scale, zero)


def _shrunk(weight: Tensor, low: Tensor, high: Tensor, whole: Grid, config: GptqConfig) -> Grid:
    """Return, for every output, the span with the least squared error; the whole one at a tie."""
    scale, zero = whole.scale.clone(), whole.zero.clone()
    least = _squared_error(weight, whole, config.max_level)
    for share in SHRINKS:
        tried = _spanning(low * share, high * share, config)
        error = _squared_error(weight, tried, config.max_level)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, tried.scale, scale)
        zero = torch.where(better, tried.zero, zero)
    return Grid(scale, zero)


def _squared_error(weight: Tensor, grid: Grid, max_level: int) -> Tensor:
    rounded = grid.value(grid.round(weight, max_level))
    return rounded.sub_(weight).square_().sum(dim=0)
