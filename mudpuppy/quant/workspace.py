"""Memory that every 4-bit product borrows and gives back, so that its pages stay warm.

A buffer that is new at every call costs more than what is computed in it: its pages are mapped and
cleared again each time. On a processor, buffers wait here for the next call; two calls at the same
time (threads, hooks, replicas of a model) each hold one of their own. Other devices have an
allocator that keeps memory itself, and knows which stream still reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_ALIGN = 64
_FREE: list[Tensor] = []
"""Buffers that nobody holds; `list.pop` and `list.append` are atomic."""


class Space:
    """A borrowed buffer, handed out piece by piece."""

    def __init__(self, buffer: Tensor | None, device: torch.device, used: int = 0) -> None:
        """Begin at byte `used` of `buffer`; without one every piece is new memory."""
        self._buffer = buffer
        self._device = device
        self._used = used

    def rest(self) -> Space:
        """Return what is left, to be used by one step and then again by the next."""
        return Space(self._buffer, self._device, self._used)

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return a flat tensor of `count` elements with any content.

        Raises:
            MemoryError: more is taken than was asked for when the buffer was borrowed.
        """
        if self._buffer is None:
            return torch.empty(count, dtype=dtype, device=self._device)
        start = -(-self._used // _ALIGN) * _ALIGN
        self._used = start + count * dtype.itemsize
        if self._used > self._buffer.numel():
            raise MemoryError(f"{self._used} bytes of a buffer of {self._buffer.numel()}")
        return self._buffer[start : self._used].view(dtype)


def room_for(*pieces: tuple[int, torch.dtype]) -> int:
    """Return the bytes to borrow for pieces of so many elements of a type."""
    return sum(count * dtype.itemsize + _ALIGN for count, dtype in pieces)


@contextmanager
def borrowed(size: int, like: Tensor) -> Iterator[Space]:
    """Lend `size` bytes on the device of `like` for the length of a block.

    Nothing that was taken may be used afterwards.
    """
    # a subclass stands for a tensor without memory, as when a graph is traced
    if like.device.type != "cpu" or type(like) is not Tensor:
        yield Space(None, like.device)
        return
    buffer = _borrow(size)
    try:
        yield Space(buffer, like.device)
    finally:
        _FREE.append(buffer)


def _borrow(size: int) -> Tensor:
    """Return a buffer of at least `size` bytes; smaller ones that wait are let go."""
    while True:
        try:
            buffer = _FREE.pop()
        except IndexError:
            break
        if buffer.numel() >= size:
            return buffer
    with torch.inference_mode(False):  # it outlives this call, and must serve everywhere
        return torch.empty(size, dtype=torch.uint8)
