"""Symmetric int4: evenly spaced levels from -7 to 7, a float32 scale for every block.

    code     level + 8; level -8 is never used, so that the grid is symmetric

Scale and level are `mudpuppy.quant.formats.even`'s. The price of a float32 scale is 0.25 bits a
weight at block size 64.
"""

from __future__ import annotations

from torch import Tensor

from mudpuppy.quant.formats.even import EvenLevels

_OFFSET = 8


class Int4(EvenLevels):
    """16 evenly spaced levels, of which 15 are used."""

    name = "int4"
    scheme = "int4-symmetric-blockwise"
    default_block_size = 64
    most = 7
    levels = tuple(float(code - _OFFSET) for code in range(16))
    zero = _OFFSET
    gaussian_error = 0.108

    def code_of(self, levels: Tensor) -> Tensor:
        """Return level + 8."""
        return levels.add_(_OFFSET)
