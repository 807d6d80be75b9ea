"""What kernels are tested with: packed matrices made to tell one rounding from another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mudpuppy.quant.formats import FOUR_BITS
from mudpuppy.quant.formats.interface import Format, Packed
from mudpuppy.quant.kernels.common import FLOATS

SHAPES = ((1, 1, 1), (3, 257, 64), (5, 96, 32), (4, 45, 7), (2, 128, 64), (33, 130, 16))
"""Rows, columns and block size: odd widths, short last blocks, blocks that end inside a byte."""


class Sample(NamedTuple):
    """A packed matrix and the type that it is to become."""

    form: Format
    packed: Packed
    dtype: torch.dtype

    def __str__(self) -> str:
        rows, columns = self.packed.qweight.shape[0], self.packed.in_features
        kind = str(self.dtype).removeprefix("torch.")
        blocks = f"blocks of {self.packed.block_size}"
        return f"{self.form.name} {rows} x {columns}, {blocks}, to {kind}"

    def expected(self) -> Tensor:
        """Return the dense matrix of the PyTorch path."""
        return self.form.dequantise(self.packed, self.dtype)


def make_samples(*, extremes: bool = True) -> Iterator[Sample]:
    """Yield a matrix of every format, shape and type, the same at every call.

    Args:
        extremes: also scales that are subnormal, or so large that products overflow.
    """
    generator = torch.Generator().manual_seed(0)
    for form in FOUR_BITS.values():
        for rows, columns, block in SHAPES:
            shape = (rows, -(-columns // block))
            nibbles = torch.randint(0, 256, (rows, -(-columns // 2)), generator=generator)
            scales = _make_scales(form.scale_dtype, shape, extremes, generator)
            packed = Packed(nibbles.to(torch.uint8), scales, columns, block)
            for dtype in FLOATS:
                yield Sample(form, packed, dtype)


def _make_scales(
    dtype: torch.dtype, shape: tuple[int, int], extremes: bool, generator: torch.Generator
) -> Tensor:
    if dtype == torch.uint8:  # 2^(n - 127); 255 is no number, and no scale
        low, high = (0, 255) if extremes else (117, 128)
        return torch.randint(low, high, shape, generator=generator).to(torch.uint8)
    if not extremes:
        return (torch.rand(shape, generator=generator) + 0.01).to(dtype)
    powers = torch.empty(shape, dtype=torch.float64).uniform_(-149, 128, generator=generator)
    scales = torch.exp2(powers).clamp(max=float(torch.finfo(dtype).max)).to(dtype)
    scales.view(-1)[:: max(3, shape[1])] = 0.0
    return scales


def count_differing(found: Tensor, expected: Tensor) -> int:
    """Return how many elements have other bits."""
    kind = torch.int32 if expected.dtype == torch.float32 else torch.int16
    return int((found.contiguous().view(kind) != expected.contiguous().view(kind)).sum())
