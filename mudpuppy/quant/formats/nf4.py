"""NF4: levels at the quantiles of a normal distribution (Dettmers et al., arXiv 2305.14314).

    levels   quantiles of N(0, 1), 8 above zero and 7 below at even steps of probability, and zero
             itself; divided by the largest, so that they end at -1 and 1; rounded to bfloat16
    scale    absmax(block), cut to bfloat16; or one of the scales near it that are searched
    nibble   index of the level nearest to w / scale, of two equally near the lower one; that of
             level 0 where scale is 0

Levels and scales are numbers of bfloat16 (8 significant bits), so their product is exact in
float32: whatever multiplies them, and in whatever order, finds the same value, and a multiplication
in bfloat16 rounds it once. Levels of full precision are no better: the relative error on gaussian
weights is the same to four digits. The range of a bfloat16 scale is that of float32, where one in
float16 would lose blocks below 6e-8 and above 65504. Scales are cut and not rounded to the nearest:
most blocks' best scale lies somewhat below absmax, and what the one largest weight loses, at most a
128th part, weighs less than a coarser grid for all others.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import NormalDist

import torch
from torch import Tensor

from mudpuppy.quant.formats.interface import Format
from mudpuppy.quant.formats.nearest import Nearest
from mudpuppy.quant.formats.search import best_scales, nonzero

_OUTERMOST = 1 - (1 / 30 + 1 / 32) / 2
"""Probability below the largest quantile: the mean of the two that 15 and 16 even steps have."""


def make_levels() -> tuple[float, ...]:
    """Return the 16 levels in rising order, before they are rounded to bfloat16."""
    normal = NormalDist()

    def quantiles(count: int) -> list[float]:
        step = (_OUTERMOST - 0.5) / count
        return [normal.inv_cdf(_OUTERMOST - step * number) for number in range(count)]

    above, below = quantiles(8), quantiles(7)
    return tuple(x / above[0] for x in (*(-q for q in below), 0.0, *reversed(above)))


class Nf4(Format):
    """16 levels that gaussian weights fall on equally often."""

    name = "nf4"
    scheme = "nf4-blockwise"
    default_block_size = 64
    scale_dtype = torch.bfloat16
    levels = tuple(torch.tensor(make_levels()).to(torch.bfloat16).tolist())
    zero = 7
    gaussian_error = 0.092
    is_exact_in = frozenset({torch.bfloat16})

    _largest = float(torch.finfo(torch.bfloat16).max)
    _nearest = Nearest([(a + b) / 2 for a, b in pairwise(levels)], per_unit=32)

    def encode(self, blocks: Tensor, peak: Tensor, search: int) -> tuple[Tensor, Tensor]:
        """Scale by absmax, or by the best of `search` scales more; take the nearest levels."""
        scales = best_scales(self, blocks, peak, search)
        exact = scales.to(torch.float32)
        nibbles = self.nearest(blocks / nonzero(exact).unsqueeze(1)).to(torch.uint8)
        return nibbles.masked_fill_((exact == 0).unsqueeze(1), self.zero), scales

    def round_scale(self, scales: Tensor) -> Tensor:
        """Cut to bfloat16, which keeps the upper half of a float32's bits."""
        upper = scales.clamp(max=self._largest).view(torch.int32) & ~0xFFFF
        return upper.view(torch.float32).to(torch.bfloat16)

    def nearest(self, values: Tensor) -> Tensor:
        """Return the nibbles of the nearest levels, of two equally near the lower one."""
        return self._nearest(values)
