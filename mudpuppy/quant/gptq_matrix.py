"""GPTQ on one matrix: round column by column, and let later columns make good the error.

The method is that of "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (Frantar et al., 2022). For inputs X it lowers tr(dW H dW^T) with H = 2 X X^T, the
squared change of the layer's output: after column j is rounded, its error is spread over the
columns still to come by the rows of the Cholesky factor of H^-1.

Matrices are held transposed, (in, out), while they are rounded: what belongs to one input then lies
side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mudpuppy.errors import EngineError
from mudpuppy.quant.gptq_grid import GptqConfig, Grid, make_grid, why_too_small
from mudpuppy.quant.gptq_pack import GptqTensors, pack_matrix

_DAMPING_TRIES = 8


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


class Factored(NamedTuple):
    """A Hessian made ready for every matrix that reads the same inputs."""

    hessian: Tensor
    """2 X X^T, (in, in)."""
    upper: Tensor
    """Upper Cholesky factor of the damped inverse, rows and columns in `order`."""
    order: Tensor
    """Inputs in the order in which they are rounded, (in,)."""
    damping: float
    """Share of the mean diagonal that was added."""


class HessianSum:
    """H = 2 X X^T, summed over batches of inputs in float32."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.matrix = torch.zeros(in_features, in_features, device=device)

    def add(self, inputs: Tensor) -> None:
        """Add inputs (..., in) to the sum."""
        rows = inputs.detach().reshape(-1, self.matrix.shape[0]).to(torch.float32)
        self.matrix.addmm_(rows.T, rows, alpha=2.0)


@torch.no_grad()
def quantise_matrix(
    weight: Tensor, hessian: Tensor | Factored, config: GptqConfig
) -> QuantisedMatrix:
    """Quantise a matrix so that its output on the Hessian's inputs changes little.

    Args:
        weight: (out, in); both fill whole words of the layout.
        hessian: 2 X X^T, (in, in), float32 or float64: everything is computed in its dtype; or
            what `factorise` made of it.
        config: the grid.

    Raises:
        EngineError: the weight or the Hessian is not finite, the weight is too large or too small
            for float16 scales, or no damping makes the Hessian invertible.
    """
    factored = hessian if isinstance(hessian, Factored) else factorise(hessian, config)
    original = _transposed(weight, factored.hessian.dtype)
    rounding = _Rounding(original, config, factored.order)
    rounding.run(factored.upper)
    tensors = rounding.pack()
    gptq_error = _objective(rounding.difference_from(original), factored.hessian)
    del rounding
    nearest = _Rounding(original, config, factored.order)
    nearest.run_nearest()
    return QuantisedMatrix(
        tensors=tensors,
        gptq_error=gptq_error,
        rtn_error=_objective(nearest.difference_from(original), factored.hessian),
        damping=factored.damping,
    )


@torch.no_grad()
def round_to_nearest(weight: Tensor, config: GptqConfig) -> Tensor:
    """Return a matrix (out, in) with every weight on the nearest level: the baseline of GPTQ.

    Groups are those of neighbouring inputs.

    Raises:
        EngineError: a weight is not finite, or too large or all too small for float16 scales.
    """
    original = _transposed(weight, torch.float32)
    order = torch.arange(original.shape[0], device=weight.device)
    nearest = _Rounding(original, config, order)
    nearest.run_nearest()
    return (original - nearest.difference_from(original)).T.to(weight.dtype).contiguous()


def _transposed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    original = weight.detach().to(dtype).T.contiguous()
    if not bool(torch.isfinite(original).all()):
        raise EngineError("the weights or their inputs are NaN or infinite")
    return original


def _objective(difference: Tensor, hessian: Tensor) -> float:
    """Return tr(dW H dW^T) of a difference (in, out)."""
    return float(((hessian @ difference) * difference).sum())


@torch.no_grad()
def factorise(hessian: Tensor, config: GptqConfig) -> Factored:
    """Invert a Hessian, once for every matrix that reads the same inputs.

    Args:
        hessian: 2 X X^T, (in, in), float32 or float64.
        config: damping and order.

    Raises:
        EngineError: it is not finite, or no damping makes it invertible.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise EngineError("the weights or their inputs are NaN or infinite")
    matrix = hessian.clone()
    diagonal = torch.diagonal(matrix)
    # An input that was always 0 has no error to spread; its weights are rounded to the nearest
    # level rather than set to 0, because other inputs than the calibration's may use them.
    diagonal[diagonal == 0] = 1.0
    order = torch.arange(matrix.shape[0], device=matrix.device)
    if config.act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
        matrix = matrix[order][:, order]
    upper, damping = _invert(matrix, config.damping)
    return Factored(hessian, upper, order, damping)


def _invert(matrix: Tensor, damping: float) -> tuple[Tensor, float]:
    """Return the upper Cholesky factor of the inverse, with as little damping as works."""
    mean = torch.diagonal(matrix).mean()
    for _ in range(_DAMPING_TRIES):
        damped = matrix.clone()
        torch.diagonal(damped).add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        del damped
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

    def __init__(self, original: Tensor, config: GptqConfig, order: Tensor) -> None:
        reason = why_too_small(original, config)
        if reason:
            raise EngineError(f"the matrix cannot be rounded: {reason}")
        self.config = config
        count = original.shape[0]
        self.size = count if config.group_size == -1 else min(config.group_size, count)
        self.order = order
        places = torch.arange(count, device=original.device)
        # a group is one of neighbours, or of inputs that are rounded one after the other
        self.g_idx = places // self.size
        if config.moves_groups:
            self.g_idx = torch.empty_like(places).scatter_(0, order, places // self.size)
        self.original = original
        self.left = original[order]  # a copy
        self.levels = torch.zeros(original.shape, dtype=torch.uint8, device=original.device)
        self.grids: dict[int, Grid] = {}

    def run(self, upper: Tensor) -> None:
        """Round every column in its order, spreading errors by the rows of `upper`."""
        config, left = self.config, self.left
        if config.act_order and config.static_groups:
            # the columns of a group do not come one after the other: all grids are made first
            self._make_static_grids()
        count = left.shape[0]
        columns, groups = self.order.tolist(), self.g_idx.tolist()
        pivots = torch.diagonal(upper).tolist()
        # a block holds whole groups, so that a grid is made from weights with all errors in
        block = config.block_size
        if not self.grids:
            block = max(1, block // self.size) * self.size
        for start in range(0, count, block):
            stop = min(start + block, count)
            errors = torch.empty_like(left[start:stop])
            for place in range(start, stop):
                column = columns[place]
                grid = self.grids.get(groups[column])
                if grid is None:
                    grid = make_grid(left[place : place + self.size], config)
                    self.grids[groups[column]] = grid
                level = grid.round(left[place], config.max_level)
                self.levels[column] = level
                error = (left[place] - grid.value(level)).div_(pivots[place])
                left[place + 1 : stop].addr_(upper[place, place + 1 : stop], error, alpha=-1.0)
                errors[place - start] = error
            left[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1.0)

    def _make_static_grids(self) -> None:
        """Choose every grid from the weights as they were."""
        for group in range(int(self.g_idx.max()) + 1):
            self.grids[group] = make_grid(self._members(group), self.config)

    def _members(self, group: int) -> Tensor:
        """Return the original weights (inputs, out) of a group."""
        if self.config.moves_groups:
            return self.original[self.g_idx == group]
        return self.original[group * self.size : (group + 1) * self.size]

    def run_nearest(self) -> None:
        """Round every weight to the nearest level, and spread nothing."""
        self._make_static_grids()
        for group, grid in self.grids.items():
            level = grid.round(self._members(group), self.config.max_level)
            self.levels[self.g_idx == group] = level.to(torch.uint8)

    def difference_from(self, original: Tensor) -> Tensor:
        """Return original less rounded weights, (in, out)."""
        difference = original.clone()
        for group, grid in self.grids.items():
            members = self.g_idx == group
            difference[members] -= grid.value(self.levels[members].to(original.dtype))
        return difference

    def pack(self) -> GptqTensors:
        """Return the result as it is stored."""
        grids = [self.grids[group] for group in sorted(self.grids)]
        scales = torch.stack([grid.scale for grid in grids]).to(torch.float16)
        zeros = torch.stack([grid.zero for grid in grids]).to(torch.int32)
        return pack_matrix(self.levels.T, scales, zeros, self.g_idx, self.config.bits)
