"""Whether a device packs and unpacks 4-bit weights as it should, asked before it is trusted.

A wrong kernel gives an error near 1, without any exception: some 4-bit kernels did on some GPUs
(bitsandbytes on RDNA and CDNA, research notes, engines.md section 4).
"""

from __future__ import annotations

from itertools import pairwise
from statistics import NormalDist

import torch
from torch import Tensor

from mudpuppy.errors import EngineError
from mudpuppy.quant.formats.interface import Format, Packed

ROWS, COLUMNS = 64, 417
"""Size of the matrix: an odd number of columns, whose last block is short in every format."""
MARGIN = 1.15
"""The error may be so many times what the format has on gaussian weights."""
OTHER_LEVELS = 1e-3
"""Share of bytes that may be packed otherwise than on the processor: a division that is rounded
otherwise moves a weight that lies between two levels."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_round_trip(
    form: Format, device: torch.device | str, block_size: int | None = None
) -> float:
    """Pack and unpack a fixed gaussian matrix on `device`, and compare with the processor's.

    Returns:
        The relative root mean square error of the round trip.

    Raises:
        EngineError: values differ from the processor's, or the error is above the format's bound.
    """
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    weight[0] = 0.0
    weight[1] *= 1e-3
    expected = form.quantise(weight, block_size)
    packed = form.quantise(weight.to(device), block_size)
    moved = Packed(expected.qweight.to(device), expected.scales.to(device), *expected[2:])
    for dtype in DTYPES:
        right = form.dequantise(expected, dtype)
        if not torch.equal(form.dequantise(moved, dtype).cpu(), right):
            raise _wrong(form, device, f"values in {str(dtype)[6:]} differ from the processor's")
        if not torch.equal(_in_parts(form, moved, dtype).cpu(), right):
            raise _wrong(form, device, f"tiles in {str(dtype)[6:]} differ from the whole matrix")
    others = float((packed.qweight.cpu() != expected.qweight).float().mean())
    if others > OTHER_LEVELS:
        raise _wrong(form, device, f"{others:.1%} of the levels differ from the processor's")
    error = relative_error(form.dequantise(packed).cpu(), weight)
    bound = error_bound(form, expected.block_size)
    if not error < bound:
        raise _wrong(form, device, f"relative error {error:.3f}, expected at most {bound:.3f}")
    return error


def relative_error(value: Tensor, weight: Tensor) -> float:
    """Return the norm of the difference as a share of the norm of `weight`."""
    return float((value.double() - weight.double()).norm() / weight.double().norm())


def error_bound(form: Format, block_size: int) -> float:
    """Return the largest relative error on gaussian weights that is no sign of a fault.

    A larger block has a larger peak, and so coarser steps.
    """
    growth = _peak(min(block_size, COLUMNS)) / _peak(form.default_block_size)
    return MARGIN * form.gaussian_error * max(1.0, growth)


def _peak(count: int) -> float:
    """Return about where the largest of so many gaussian numbers lies, signs aside."""
    return NormalDist().inv_cdf(1 - 0.5 / (count + 1))


def _in_parts(form: Format, packed: Packed, dtype: torch.dtype) -> Tensor:
    """Return the dense matrix, made of tiles: some columns of some rows at a time."""
    made = torch.empty(ROWS, COLUMNS, dtype=dtype, device=packed.qweight.device)
    half = packed.block_size * (1 + packed.block_size % 2)
    borders = [0, half, COLUMNS] if half < COLUMNS else [0, COLUMNS]
    for left, right in pairwise(borders):
        for rows in ((0, 5), (5, ROWS)):
            part = made[slice(*rows), left:right]
            form.dequantise_into(packed, part, rows=rows, columns=(left, right))
    return made


def _wrong(form: Format, device: torch.device | str, problem: str) -> EngineError:
    return EngineError(
        f"the {form.name} round trip is wrong on {device}: {problem}",
        hint="train with --method lora here, or with another build of torch",
    )
