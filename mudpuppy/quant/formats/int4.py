"""Symmetric int4: evenly spaced levels from -7 to 7, a float32 scale for every block.

    scale    absmax(block) / 7, float32; or one of the scales near it that are searched
    level    clip(rint(w / scale), -7, 7), rint to even; 0 where scale is 0
    nibble   level + 8; level -8 is never used, so that the grid is symmetric

Scales are float32, not bfloat16: a bfloat16 scale may round down, which clips the largest weight of
the block and breaks the bound |w - value| <= scale / 2. The price is 0.25 bits a weight at block
size 64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mudpuppy.quant.formats.interface import Format
from mudpuppy.quant.formats.search import best_scales, nonzero

MAX_LEVEL = 7
"""Largest level; the smallest is its negative."""
_OFFSET = 8


class Int4(Format):
    """16 evenly spaced levels, of which 15 are used."""

    name = "int4"
    scheme = "int4-symmetric-blockwise"
    default_block_size = 64
    scale_dtype = torch.float32
    levels = tuple(float(nibble - _OFFSET) for nibble in range(16))
    zero = _OFFSET
    gaussian_error = 0.108

    def encode(self, blocks: Tensor, peak: Tensor, search: int) -> tuple[Tensor, Tensor]:
        """Divide by the largest, or by the best of `search` scales more, and round."""
        # by a number of Python's, a GPU would multiply with its reciprocal instead
        largest = peak.new_full((), MAX_LEVEL)
        scales = best_scales(self, blocks, peak / largest, search)
        nibbles = self.nearest(blocks / nonzero(scales).unsqueeze(1)).to(torch.uint8)
        # a block of subnormal numbers may have a scale that underflows to 0
        return nibbles.masked_fill_((scales == 0).unsqueeze(1), self.zero), scales

    def round_scale(self, scales: Tensor) -> Tensor:
        """Return the scales as they are: float32."""
        return scales

    def nearest(self, values: Tensor) -> Tensor:
        """Return the nibbles of the nearest levels, of two equally near the even one."""
        levels = values.round().clamp_(-MAX_LEVEL, MAX_LEVEL)
        return levels.add_(_OFFSET).to(torch.int32)
