"""Symmetric int8: evenly spaced levels from -127 to 127, a float32 scale for every block.

    code     the level as a signed byte; -128 is never used, so that the grid is symmetric

Scale and level are `mudpuppy.quant.formats.even`'s; a weight takes 8.5 bits at block size 64, and
its error is a sixteenth of NF4's. No table is needed to read it: a byte is its level. Scales are
not searched: among so many levels none is worth cutting the largest weight off.
"""

from __future__ import annotations

from torch import Tensor

from mudpuppy.quant.formats.even import EvenLevels
from mudpuppy.quant.formats.lookup import expand_bytes
from mudpuppy.quant.workspace import Space


class Int8(EvenLevels):
    """256 evenly spaced levels, of which 255 are used."""

    name = "int8"
    scheme = "int8-symmetric-blockwise"
    bits = 8
    default_block_size = 64
    most = 127
    levels = tuple(float(code if code < 128 else code - 256) for code in range(256))
    zero = 0
    gaussian_error = 0.0059

    def encode(self, blocks: Tensor, peak: Tensor, search: int) -> tuple[Tensor, Tensor]:
        """Divide by the largest, and round."""
        del search
        return super().encode(blocks, peak, 0)

    def code_of(self, levels: Tensor) -> Tensor:
        """Return the low byte of each level."""
        return levels.bitwise_and_(255)

    def expand(
        self, qweight: Tensor, scales: Tensor, block: int, out: Tensor, space: Space
    ) -> None:
        """Convert bytes, and multiply."""
        expand_bytes(qweight, scales, block, out, space)
