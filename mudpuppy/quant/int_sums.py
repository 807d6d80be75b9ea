"""Sums of products of int8 levels, exact on every device and at every length.

A sum of integers has no rounding, so what computes it does not change a bit of the result: int8
units where they are there and have been checked, fp32 in blocks short enough to be exact elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LARGEST = 128
"""Largest absolute value of a level; asymmetric grids use -128 too."""
EXACT_IN_FP32 = 2**24 // LARGEST**2
"""Longest sum of products that fp32 holds exactly, in terms: 1024."""
EXACT_IN_INT32 = (2**31 - 1) // LARGEST**2
"""The same for int32: 131,071."""
GPU_MULTIPLE = 8
"""Columns and outputs that int8 units of a GPU take are multiples of this."""
GPU_ROWS = 32
"""Fewest rows of a product on such units that we ask for; cuBLASLt refuses 16 and fewer."""

_CHECKED: dict[str, bool] = {}


def sum_products(left: Tensor, right: Tensor) -> Tensor:
    """Return `left @ right.T` (m, n) of levels (m, k) and (n, k), exactly.

    Args:
        left: int8, or whole numbers from -128 to 127 as float32; what NaN gives is not defined.
        right: the same.

    Returns:
        int32, or int64 where k is above 131,071.
    """
    columns = left.shape[1]
    if not columns or not left.shape[0] or not right.shape[0]:
        return left.new_zeros(left.shape[0], right.shape[0], dtype=torch.int32)
    kind = left.device.type
    if can_multiply_int8(kind):
        product, limit = _multiply_int8, EXACT_IN_INT32
        left, right = left.to(torch.int8), right.to(torch.int8)
    else:
        product, limit = _multiply_fp32, EXACT_IN_FP32
    if columns <= limit:
        return product(left, right)
    total = torch.zeros(
        left.shape[0],
        right.shape[0],
        dtype=torch.int32 if columns <= EXACT_IN_INT32 else torch.int64,
        device=left.device,
    )
    for start in range(0, columns, limit):
        stop = start + limit
        total += product(left[:, start:stop], right[:, start:stop])
    return total


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's
def can_multiply_int8(kind: str) -> bool:
    """Return whether the int8 units of a device are there and add up right; checked once.

    Args:
        kind: `cpu` or `cuda` (also ROCm).
    """
    if kind not in _CHECKED:
        _CHECKED[kind] = check_int8(kind)
    return _CHECKED[kind]


def check_int8(kind: str) -> bool:
    """Return whether `torch._int_mm` is there and adds up right on a kind of device.

    Without VNNI some kernels add pairs of products in 16 bits, which saturate: the check holds the
    largest products that there are.
    """
    if kind not in ("cpu", "cuda") or not hasattr(torch, "_int_mm"):
        return False
    if kind == "cpu" and not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False  # torch would add them up in a plain loop
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(-LARGEST, LARGEST, (40, 200), generator=generator)
    right = torch.randint(-LARGEST, LARGEST, (24, 200), generator=generator)
    left[0], left[1], right[0], right[1] = -LARGEST, LARGEST - 1, -LARGEST, LARGEST - 1
    try:
        found = _multiply_int8(left.to(kind, torch.int8), right.to(kind, torch.int8))
    except RuntimeError:
        return False
    return torch.equal(found.cpu().long(), left @ right.t())


def _multiply_int8(left: Tensor, right: Tensor) -> Tensor:
    """Return the int32 product of int8 levels (m, k) and (n, k)."""
    if left.device.type == "cpu":
        if left.shape[1] == 1:  # torch 2.13 reads a single column with the strides of a row
            left, right = functional.pad(left, (0, 1)), functional.pad(right, (0, 1))
        return torch._int_mm(left, right.t())
    rows, outputs = left.shape[0], right.shape[0]
    columns = -left.shape[1] % GPU_MULTIPLE
    left = functional.pad(left, (0, columns, 0, max(GPU_ROWS - rows, 0)))
    right = functional.pad(right, (0, columns, 0, -outputs % GPU_MULTIPLE))
    return torch._int_mm(left.contiguous(), right.contiguous().t())[:rows, :outputs]


def _multiply_fp32(left: Tensor, right: Tensor) -> Tensor:
    """Return the same as int32, where fp32 holds every partial sum exactly."""
    with torch.autocast(left.device.type, enabled=False):
        product = left.to(torch.float32) @ right.to(torch.float32).t()
    return product.to(torch.int32)
