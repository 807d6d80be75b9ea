"""bitsandbytes' NF4 and FP4: levels and scales in float32. For what others wrote; `nf4` is smaller.

    nf4      the table of QLoRA's appendix E, in float32
    fp4      sign, two exponent bits and one of mantissa, divided by the largest: 12
    scale    absmax(block), float32
    nibble   index of the level nearest to w / scale

Blocks lie in rows here, as in every format. bitsandbytes' own run over the flattened weight; how
they become these without a changed value says `mudpuppy.quant.bnb_files`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mudpuppy.quant.formats.interface import Format
from mudpuppy.quant.formats.search import nonzero


def _rounded(values: list[float]) -> tuple[float, ...]:
    return tuple(torch.tensor(values, dtype=torch.float32).tolist())


class _Bnb(Format):
    """What both have in common."""

    default_block_size = 64
    scale_dtype = torch.float32

    def encode(self, blocks: Tensor, peak: Tensor, search: int) -> tuple[Tensor, Tensor]:
        """Scale by absmax and take the nearest levels; there is no search."""
        del search
        ordered, order = blocks.new_tensor(self.levels).sort(stable=True)
        borders = (ordered[1:] + ordered[:-1]) / 2
        shares = blocks / nonzero(peak).unsqueeze(1)
        nibbles = order[torch.bucketize(shares, borders)].to(torch.uint8)
        return nibbles.masked_fill_((peak == 0).unsqueeze(1), self.zero), peak


class BnbNf4(_Bnb):
    """bitsandbytes' NF4."""

    name = "bnb-nf4"
    scheme = "bnb-nf4-blockwise"
    levels = _rounded(
        [
            *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
            *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
            *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
            *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
        ]
    )
    zero = 7
    gaussian_error = 0.092


class BnbFp4(_Bnb):
    """bitsandbytes' FP4."""

    name = "bnb-fp4"
    scheme = "bnb-fp4-blockwise"
    levels = _rounded(
        [sign * size / 12 for sign in (1, -1) for size in (0, 0.0625, 8, 12, 4, 6, 2, 3)]
    )
    zero = 0
    gaussian_error = 0.122
