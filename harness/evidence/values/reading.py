"""Parts of tensors, their bytes, and what is said of a file that cannot be read."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.facts.checkpoint import Tensor
from harness.registry import Missing


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Consecutive bytes of one tensor."""

    number: int
    """Position of the tensor in the order it was given in."""
    tensor: Tensor
    """The tensor."""
    start: int
    """First byte, counted from the tensor's first."""
    stop: int
    """One past the last."""
    unit: int
    """Bytes of a row; where rows are not summed, of a few whole values."""
    rows: int
    """Rows in it; 0 when they are not summed."""
    is_last: bool = False
    """Whether it is the tensor's last one."""


def fill(handle: int, tensor: Tensor, start: int, raw: NDArray[np.uint8]) -> None:
    """Fill a buffer with the bytes of a tensor from `start` on.

    Raises:
        Missing: the file cannot be read, or is shorter than that.
    """
    done = 0
    try:
        while done < raw.size:
            count = os.preadv(handle, [raw[done:].data], tensor.start + start + done)
            if not count:
                raise too_short(tensor)
            done += count
    except OSError as problem:
        raise unreadable(tensor, problem.strerror) from problem


def too_short(tensor: Tensor) -> Missing:
    """Return what is said of a file that ends before its tensor does."""
    return Missing(f"{tensor.file} ends inside {tensor.name}")


def unreadable(tensor: Tensor, why: str | None) -> Missing:
    """Return what is said of a file that the system does not give."""
    return Missing(f"{tensor.file} cannot be read: {why}")
