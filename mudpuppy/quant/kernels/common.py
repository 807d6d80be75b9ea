"""What a kernel is, and what both ask of a packed matrix before they take it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mudpuppy.quant.formats.interface import Format, Packed
from mudpuppy.quant.formats.mxfp4 import Mxfp4

Range = tuple[int, int]
"""First index and the one after the last."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""Types that kernels write."""


class Kernel(Protocol):
    """What a kernel can do beside the PyTorch path."""

    def takes(self, form: Format, packed: Packed, out: Tensor) -> bool:
        """Return whether these tensors are such as it can read and write."""

    def dequantise_into(
        self, form: Format, packed: Packed, out: Tensor, rows: Range, columns: Range
    ) -> None:
        """Write `packed[rows, columns]` to `out`."""


def is_e8m0(form: Format, dtype: torch.dtype) -> bool | None:
    """Return whether stored scales are powers of two, or None where a kernel cannot read them.

    A format that makes its scales in a way of its own, such as from a second table, is computed by
    PyTorch.
    """
    if form.bits != 4:  # a byte a weight needs no table, and PyTorch converts it as fast
        return None
    if isinstance(form, Mxfp4):
        return True if dtype == torch.uint8 else None
    is_plain = type(form).scale_values is Format.scale_values and dtype.is_floating_point
    return False if is_plain and dtype.itemsize in (2, 4) else None


def rows_are_dense(tensor: Tensor) -> bool:
    """Return whether the numbers of every row of a matrix lie side by side."""
    return tensor.dim() == 2 and (tensor.stride(1) == 1 or tensor.shape[1] <= 1)
