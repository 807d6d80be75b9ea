"""GPTQ on one matrix: round column by column, and let later columns make good the error.

The method is that of "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (Frantar et al., 2022). For inputs X it lowers tr(dW H dW^T) with H = 2 X X^T, the
squared change of the layer's output: after column j is rounded, its error is spread over the
columns still to come by the rows of the Cholesky factor of H^-1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mudpuppy.errors import EngineError
from mudpuppy.quant.gptq_pack import PACKED_BITS, GptqTensors, pack_matrix

_DAMPING_TRIES = 8
_SMALLEST_SCALE = 2.0**-24  # the smallest float16 above 0


@dataclass(frozen=True, kw_only=True)
class GptqConfig:
    """The grid that weights are rounded to, and how the rounding goes."""

    bits: int = 4
    """Width of a level: 2, 4 or 8."""
    group_size: int = 128
    """Inputs that share a scale and a zero; -1 for all inputs of an output."""
    symmetric: bool = True
    """Whether the zero is the middle level; else it is chosen for every group."""
    act_order: bool = False
    """Round the columns with the largest inputs first. Groups stay those of neighbouring inputs."""
    damping: float = 0.01
    """Share of the Hessian's mean diagonal that is added to it; grows tenfold while it fails."""
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


class QuantisedMatrix(NamedTuple):
    """One matrix after GPTQ."""

    tensors: GptqTensors
    """Levels, scales and zeros, packed."""
    gptq_error: float
    """tr(dW H dW^T) of the result."""
    rtn_error: float
    """The same of rounding every weight to the nearest level of the grid."""
    damping: float
    """Share of the mean diagonal that was added to the Hessian."""


class _Grid(NamedTuple):
    """The levels of one group, a row per output."""

    scale: Tensor  # (out, 1), a float16 value
    zero: Tensor  # (out, 1), an integer value

    def round(self, weight: Tensor, max_level: int) -> Tensor:
        return (weight / self.scale + self.zero).round_().clamp_(0, max_level)

    def value(self, level: Tensor) -> Tensor:
        return (level - self.zero) * self.scale


class HessianSum:
    """H = 2 X X^T, summed over batches of inputs in float32."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.matrix = torch.zeros(in_features, in_features, device=device)

    def add(self, inputs: Tensor) -> None:
        """Add inputs (..., in) to the sum."""
        rows = inputs.detach().reshape(-1, self.matrix.shape[0]).to(torch.float32)
        self.matrix.addmm_(rows.T, rows, alpha=2.0)


@torch.no_grad()
def quantise_matrix(weight: Tensor, hessian: Tensor, config: GptqConfig) -> QuantisedMatrix:
    """Quantise a matrix so that its output on the Hessian's inputs changes little.

    Args:
        weight: (out, in); both divisible by 32 / bits.
        hessian: 2 X X^T, (in, in), float32 or float64: everything is computed in its dtype.
        config: the grid.

    Raises:
        EngineError: the weight or the Hessian is not finite, or no damping makes it invertible.
    """
    original = weight.detach().to(hessian.dtype)
    if not bool(torch.isfinite(original).all()) or not bool(torch.isfinite(hessian).all()):
        raise EngineError("the weights or their inputs are NaN or infinite")
    factor, order, damping = _prepare(hessian, config)
    rounding = _Rounding(original, config, static=config.act_order)
    rounding.run(factor, order)
    nearest = _Rounding(original, config, static=True)
    nearest.run_nearest()
    return QuantisedMatrix(
        tensors=rounding.pack(),
        gptq_error=_objective(original - rounding.values, hessian),
        rtn_error=_objective(original - nearest.values, hessian),
        damping=damping,
    )


def _objective(difference: Tensor, hessian: Tensor) -> float:
    return float(((difference @ hessian) * difference).sum())


def _prepare(hessian: Tensor, config: GptqConfig) -> tuple[Tensor, Tensor | None, float]:
    """Return the upper Cholesky factor of H^-1, the order of the columns, and the damping."""
    matrix = hessian.clone()
    diagonal = torch.diagonal(matrix)
    # An input that was always 0 has no error to spread; its weights are rounded to the nearest
    # level rather than set to 0, because other inputs than the calibration's may use them.
    diagonal[diagonal == 0] = 1.0
    order = torch.argsort(diagonal, descending=True, stable=True) if config.act_order else None
    if order is not None:
        matrix = matrix[order][:, order]
    factor, damping = _invert(matrix, config.damping)
    return factor, order, damping


def _invert(matrix: Tensor, damping: float) -> tuple[Tensor, float]:
    """Return the upper Cholesky factor of the inverse, with as little damping as works."""
    mean = torch.diagonal(matrix).mean()
    for _ in range(_DAMPING_TRIES):
        damped = matrix.clone()
        torch.diagonal(damped).add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not int(failed) and bool(torch.isfinite(upper).all()):
                return upper, damping
        damping = max(damping * 10, 1e-4)
    raise EngineError(
        f"the Hessian of the inputs cannot be inverted, even with damping {damping / 10:g}",
        hint="calibrate on more, or more varied, samples",
    )


class _Rounding:
    """The state of rounding one matrix: what is left to round, and what came out."""

    def __init__(self, weight: Tensor, config: GptqConfig, *, static: bool) -> None:
        self.config = config
        self.group_size = weight.shape[1] if config.group_size == -1 else config.group_size
        self.left = weight.clone()
        self.levels = torch.zeros_like(weight)
        self.values = torch.zeros_like(weight)
        self.g_idx = torch.arange(weight.shape[1], device=weight.device) // self.group_size
        self.grids: dict[int, _Grid] = {}
        if static:
            # the columns of a group will not come one after the other, so all grids are made first
            for group in range(int(self.g_idx[-1]) + 1):
                self.make_grid(group)

    def make_grid(self, group: int) -> _Grid:
        """Choose the grid of a group from its weights as they are now."""
        start = group * self.group_size
        self.grids[group] = _make_grid(self.left[:, start : start + self.group_size], self.config)
        return self.grids[group]

    def run(self, factor: Tensor, order: Tensor | None) -> None:
        """Round every column, in `order`, spreading errors by the rows of `factor`."""
        columns = self.left.shape[1]
        places = list(range(columns)) if order is None else order.tolist()
        left = self.left if order is None else self.left[:, order]
        # a block holds whole groups, so that a grid is made from weights with all errors in
        groups = max(1, self.config.block_size // self.group_size)
        block = min(groups * self.group_size, columns) if order is None else self.config.block_size
        for start in range(0, columns, block):
            stop = min(start + block, columns)
            errors = torch.zeros_like(left[:, start:stop])
            for j in range(start, stop):
                error = self.round_column(left[:, j : j + 1], places[j]) / factor[j, j]
                left[:, j + 1 : stop].addmm_(error, factor[j : j + 1, j + 1 : stop], alpha=-1.0)
                errors[:, j - start] = error[:, 0]
            left[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1.0)

    def run_nearest(self) -> None:
        """Round every weight to the nearest level, and spread nothing."""
        for group, grid in self.grids.items():
            columns = slice(group * self.group_size, (group + 1) * self.group_size)
            self.levels[:, columns] = grid.round(self.left[:, columns], self.config.max_level)
            self.values[:, columns] = grid.value(self.levels[:, columns])

    def round_column(self, weight: Tensor, column: int) -> Tensor:
        """Round the weights (out, 1) of an input, and return how far they moved."""
        group = column // self.group_size
        grid = self.grids[group] if group in self.grids else self.make_grid(group)
        level = grid.round(weight, self.config.max_level)
        self.levels[:, column] = level[:, 0]
        self.values[:, column] = grid.value(level)[:, 0]
        return weight - self.values[:, column : column + 1]

    def pack(self) -> GptqTensors:
        """Return the result as it is stored."""
        grids = [self.grids[group] for group in sorted(self.grids)]
        scales = torch.cat([grid.scale for grid in grids], dim=1).T.to(torch.float16)
        zeros = torch.cat([grid.zero for grid in grids], dim=1).T.to(torch.int32)
        levels = self.levels.to(torch.uint8)
        return pack_matrix(levels, scales, zeros, self.g_idx, self.config.bits)


def _make_grid(weight: Tensor, config: GptqConfig) -> _Grid:
    """Return a grid that spans the weights (out, columns) of a group.

    The scale is rounded to float16 here, before any error is computed: what is stored is then what
    the errors were made good for.
    """
    low = weight.amin(dim=1, keepdim=True).clamp_max_(0)
    high = weight.amax(dim=1, keepdim=True).clamp_min_(0)
    if config.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    else:
        # the zero must be at least 1: version 1 of the format stores one less
        low = torch.minimum(low, -high / (config.max_level - 1))
    scale = (high - low) / config.max_level
    scale = torch.where(scale == 0, torch.ones_like(scale), scale.clamp_min(_SMALLEST_SCALE))
    scale = scale.to(torch.float16).to(weight.dtype)
    if not bool(torch.isfinite(scale).all()):
        raise EngineError("a weight is too large for a float16 scale")
    if config.symmetric:
        zero = torch.full_like(scale, (config.max_level + 1) // 2)
    else:
        zero = (-low / scale).round_().clamp_(1, config.max_level)
    return _Grid(scale, zero)
