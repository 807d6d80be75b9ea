"""Find a better scale for every block than the one at which its largest weight just fits.

A smaller scale cuts the largest weights off and holds the others more finely; a larger one is
better where a level lies nearer then. All candidates are the same shares of the full scale, so the
choice depends on the block alone.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor

FROM, TO = 0.80, 1.04
"""Shares of the full scale between which is searched."""


class Searchable(Protocol):
    """What a search must know of a format."""

    levels: ClassVar[tuple[float, ...]]

    def round_scale(self, scales: Tensor) -> Tensor:
        """Return float32 scales as they will be stored."""

    def nearest(self, values: Tensor) -> Tensor:
        """Return the nibbles of values at scale 1."""


def best_scales(form: Searchable, blocks: Tensor, full: Tensor, steps: int) -> Tensor:
    """Return for every block the scale with the least squared error of those tried.

    Args:
        form: the format.
        blocks: float32, (n, block).
        full: the scale at which the largest weight of a block has the largest level, (n,).
        steps: scales to try besides; 0 for none.
    """
    best = form.round_scale(full)
    if not steps:
        return best
    unit = nonzero(full)
    shares = blocks / unit.unsqueeze(1)  # of their own size, so that no square overflows
    levels = blocks.new_tensor(form.levels)
    least = _error(form, shares, best, unit, levels)
    for step in range(steps):
        tried = form.round_scale(full * (FROM + (TO - FROM) * (step + 0.5) / steps))
        error = _error(form, shares, tried, unit, levels)
        is_better = error < least
        best = torch.where(is_better, tried, best)
        least = torch.where(is_better, error, least)
    return best


def _error(
    form: Searchable, shares: Tensor, scales: Tensor, unit: Tensor, levels: Tensor
) -> Tensor:
    """Return the squared error of every block in units of its full scale."""
    ratio = (scales.to(torch.float32) / unit).unsqueeze(1)
    values = take(levels, form.nearest(shares / nonzero(ratio))).mul_(ratio)
    return sum_pairwise(values.sub_(shares).square_())


def take(table: Tensor, index: Tensor) -> Tensor:
    """Return the entries of a small table, of the shape of `index` (int32)."""
    return torch.index_select(table, 0, index.view(-1)).view(index.shape)


def nonzero(divisor: Tensor) -> Tensor:
    """Return divisors with 1 in the place of 0."""
    return torch.where(divisor == 0, torch.ones_like(divisor), divisor)


def sum_pairwise(values: Tensor) -> Tensor:
    """Return the sums over the last dimension, whose additions have one order on every device.

    The second half is added to the first, again and again; zeros make the length a power of two.
    """
    length = values.shape[-1]
    padded = 1 << max(length - 1, 0).bit_length()
    if padded != length:
        values = torch.nn.functional.pad(values, (0, padded - length))
    while padded > 1:
        padded //= 2
        values = values[..., :padded] + values[..., padded:]
    return values[..., 0]
