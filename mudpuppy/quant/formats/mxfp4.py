"""MXFP4: 4-bit floats that share a power of two (OCP Microscaling Formats, version 1.0).

    levels   the numbers of E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives; bit 3 is the sign
    scale    2^e, stored as e + 127 in a byte (E8M0; 255, not a number, is never written); e is
             floor(log2(absmax)) - 2 as in the standard, or one more, whichever gives the smaller
             squared error; of two equally good ones the former; at most 125
    nibble   w / 2^e rounded to the nearest level, to even between two, and never beyond 6
    block    32 columns, by definition

Every value is exact in float32 and bfloat16.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from mudpuppy.quant.formats.interface import Format
from mudpuppy.quant.formats.nearest import Nearest
from mudpuppy.quant.formats.search import sum_pairwise, take

MAX_EXPONENT = 2
"""Exponent of the largest level."""
BIAS = 127
"""What is added to the exponent of a scale."""
MAX_STORED = BIAS + 125
"""Largest exponent, as it is stored: with one more, 4 would be beyond float32."""
MOST_UNITS = 7.0
"""Largest magnitude, in units of the lower scale, at which the higher one cannot be better."""
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NEAREST = Nearest(
    [(a + b) / 2 for a, b in pairwise(_MAGNITUDES)], per_unit=2, above=frozenset({0.75, 1.75, 3.5})
)


class Mxfp4(Format):
    """E2M1 elements with an E8M0 scale."""

    name = "mxfp4"
    scheme = "mxfp4-blockwise"
    default_block_size = 32
    scale_dtype = torch.uint8
    levels = (*_MAGNITUDES, *(-level for level in _MAGNITUDES))
    zero = 0
    gaussian_error = 0.1115
    is_exact_in = frozenset({torch.bfloat16})

    def require_block_size(self, block_size: int) -> None:
        """Refuse every block size but the standard's.

        Raises:
            ValueError: it is not 32.
        """
        if block_size != self.default_block_size:
            raise ValueError(f"MXFP4 has blocks of 32 by definition, not of {block_size}")

    def scale_values(self, scales: Tensor) -> Tensor:
        """Return the powers of two that stored exponents stand for, float32."""
        # the bits of a float32 with that exponent; 2^-127 is a subnormal number
        bits = (scales.to(torch.int32) << 23).masked_fill_(scales == 0, 1 << 22)
        return bits.view(torch.float32).masked_fill(scales == 255, torch.nan)

    def encode(self, blocks: Tensor, peak: Tensor, search: int) -> tuple[Tensor, Tensor]:
        """Try both exponents where the higher can be better; there is nothing else to search.

        Up to 7 units the lower is never worse: its levels hold all the higher's up to 6, and from
        there to 7 both are nearest to 6. So only a fifth of usual blocks are rounded twice.
        """
        del search
        _, exponent = torch.frexp(peak)  # peak = m * 2^exponent with 0.5 <= m < 1
        low = (exponent - 1 - MAX_EXPONENT + BIAS).clamp_(0, MAX_STORED).to(torch.uint8)
        low.masked_fill_(peak == 0, BIAS)
        nibbles, error = self._round(blocks, low, low)
        rows = (peak > MOST_UNITS * self.scale_values(low)).nonzero().squeeze(1)
        if not rows.numel():
            return nibbles, low
        unit = low[rows]
        high = (unit + 1).clamp_(max=MAX_STORED)
        other, other_error = self._round(blocks[rows], high, unit)
        is_better = other_error < error[rows]
        chosen = rows[is_better]
        nibbles[chosen], low[chosen] = other[is_better], high[is_better]
        return nibbles, low

    def _round(self, blocks: Tensor, stored: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Return nibbles and squared errors for given scales, the errors in units of `unit`."""
        scale = self.scale_values(stored)
        scaled = blocks / scale.unsqueeze(1)
        size = scaled.abs()
        nibbles = _NEAREST(size)
        rounded = take(size.new_tensor(_MAGNITUDES), nibbles)
        error = sum_pairwise(size.sub_(rounded).square_())
        nibbles = nibbles.to(torch.uint8)
        # there is no use for a negative zero
        negative = (scaled < 0).view(torch.uint8) & (nibbles > 0).view(torch.uint8)
        return nibbles.add_(negative, alpha=8), error * (scale / self.scale_values(unit)).square()
