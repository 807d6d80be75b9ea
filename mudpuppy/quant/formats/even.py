"""Symmetric evenly spaced levels with a float32 scale for every block: what int4 and int8 share.

    scale    absmax(block) / most, float32; or one of the scales near it that are searched
    level    clip(rint(w / scale), -most, most), rint to even; 0 where scale is 0

Scales are float32, not bfloat16: a bfloat16 scale may round down, which clips the largest weight of
the block and breaks the bound |w - value| <= scale / 2.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from mudpuppy.quant.formats.interface import Format
from mudpuppy.quant.formats.search import best_scales, nonzero


class EvenLevels(Format):
    """Levels from -most to most, one apart."""

    scale_dtype = torch.float32
    most: ClassVar[int]
    """Largest level; the smallest is its negative, so that the grid is symmetric."""

    def encode(self, blocks: Tensor, peak: Tensor, search: int) -> tuple[Tensor, Tensor]:
        """Divide by the largest, or by the best of `search` scales more, and round."""
        # by a number of Python's, a GPU would multiply with its reciprocal instead
        largest = peak.new_full((), self.most)
        scales = best_scales(self, blocks, peak / largest, search)
        codes = self.nearest(blocks / nonzero(scales).unsqueeze(1)).to(torch.uint8)
        # a block of subnormal numbers may have a scale that underflows to 0
        return codes.masked_fill_((scales == 0).unsqueeze(1), self.zero), scales

    def round_scale(self, scales: Tensor) -> Tensor:
        """Return the scales as they are: float32."""
        return scales

    def nearest(self, values: Tensor) -> Tensor:
        """Return the codes of the nearest levels, int32; of two equally near the even one's."""
        return self.code_of(values.round().clamp_(-self.most, self.most).to(torch.int32))

    @abstractmethod
    def code_of(self, levels: Tensor) -> Tensor:
        """Return the codes of levels, both int32; the levels may be written over."""
