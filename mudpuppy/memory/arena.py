"""Device memory that is asked for by name, and copies to and from it that other work may overlap.

Streaming and offload take every byte of the device through an arena, and every copy. There are two:
`HostArena` copies at once, on any device, and is what the CPU uses; `CudaArena` (also ROCm, as in
torch) copies on streams of its own, so that nothing waits but what needs the bytes. What they share
is a `Mark`: a point that can be waited for, by the host or by the device's computation.

The rules of a copy, which a test holds with an arena that is as late as it may be:

* a slot is written only after the mark that said it is free;
* a slot is read only by a computation that waits for the mark of its copy;
* the host reads what came from the device only after it has waited for that copy's mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mudpuppy.errors import EngineError

ALIGNMENT = 256
"""Bytes to whose multiple every tensor in a buffer is placed: what a GPU's loads want at most."""
Copy = tuple[Tensor, Tensor]
"""Source and target of a copy, of one shape."""


class Mark:
    """A point in the work of the device; this one has been passed already."""

    def wait(self) -> None:
        """Let the host wait."""

    def hold_computation(self) -> None:
        """Let what the device computes from now on wait; the host goes on."""


PASSED = Mark()
"""The mark of what is done."""


class DeviceFull(EngineError):
    """More was asked of the device than its budget."""


class HostArena:
    """Memory of a device whose copies are finished when they return.

    On the CPU the copies are made all the same, so that what is counted there is what a GPU would
    move.

    Args:
        device: where layers compute.
        budget: bytes that may be taken at one time; no bound where none is given.
    """

    overlaps = False
    """Whether work on the host may go on beside the device's: then it gets a thread."""

    def __init__(self, device: torch.device, *, budget: int | None = None) -> None:
        self.device = device
        self.budget = budget
        self.taken = 0
        """Bytes that are taken now."""
        self.peak = 0
        """Most bytes that were taken at one time."""
        self.inward = 0
        """Bytes that were copied to the device."""
        self.outward = 0
        """Bytes that were copied to the host."""

    def reserve(self, size: int, what: str) -> None:
        """Count `size` bytes of the device for what the caller holds there.

        Raises:
            DeviceFull: they are beyond the budget.
        """
        if self.budget is not None and self.taken + size > self.budget:
            raise DeviceFull(
                f"{what} takes {size:,} bytes of the device, of whose budget of {self.budget:,} "
                f"{self.taken:,} are taken",
                hint="lower --stream-layers",
            )
        self.taken += size
        self.peak = max(self.peak, self.taken)

    def give_back(self, size: int) -> None:
        """Count bytes that are free again."""
        self.taken -= size

    def make_slot(self, size: int) -> Tensor:
        """Return `size` bytes of the device, which stay taken until they are given back.

        Raises:
            DeviceFull: they are beyond the budget.
        """
        self.reserve(size, "a layer's slot")
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def make_host(self, size: int) -> Tensor:
        """Return `size` bytes of the host, from which and to which copies are fastest."""
        return torch.empty(size, dtype=torch.uint8)

    def mark(self) -> Mark:
        """Return the point that the device's computation has reached."""
        return PASSED

    def bring(self, copies: Sequence[Copy], after: Mark) -> Mark:
        """Copy from the host to the device, once `after` is passed."""
        del after
        self.inward += sum(size_of(source) for source, _ in copies)
        for source, target in copies:
            target.copy_(source)
        return PASSED

    def take(self, copies: Sequence[Copy]) -> Mark:
        """Copy what the device has computed so far to the host."""
        self.outward += sum(size_of(source) for source, _ in copies)
        for source, target in copies:
            target.copy_(source)
        return PASSED


class _CudaMark(Mark):
    """An event on a stream of one GPU."""

    def __init__(self, stream: Any) -> None:
        kind: Any = torch.cuda.Event
        self._event: Any = kind()
        self._event.record(stream)
        self._device = stream.device

    def wait(self) -> None:
        self._event.synchronize()

    def hold_computation(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._event)

    def hold(self, stream: Any) -> None:
        """Let a stream wait."""
        stream.wait_event(self._event)


class CudaArena(HostArena):
    """Memory of one GPU; copies in either direction have a stream each."""

    overlaps = True

    def __init__(self, device: torch.device, *, budget: int | None = None) -> None:
        super().__init__(device, budget=budget)
        kind: Any = torch.cuda.Stream
        self._inward, self._outward = kind(device), kind(device)

    def make_host(self, size: int) -> Tensor:
        """Return pinned memory: copies from pageable memory would wait for the host."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def mark(self) -> Mark:
        """Return the point that the computation has reached, on the stream that is current."""
        return _CudaMark(torch.cuda.current_stream(self.device))

    def bring(self, copies: Sequence[Copy], after: Mark) -> Mark:
        """Copy to the device on a stream of its own."""
        self.inward += sum(size_of(source) for source, _ in copies)
        if isinstance(after, _CudaMark):
            after.hold(self._inward)
        with torch.cuda.stream(self._inward):
            for source, target in copies:
                target.copy_(source, non_blocking=True)
        return _CudaMark(self._inward)

    def take(self, copies: Sequence[Copy]) -> Mark:
        """Copy to the host on a stream of its own, behind what was computed so far."""
        self.outward += sum(size_of(source) for source, _ in copies)
        self._outward.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._outward):
            for source, target in copies:
                target.copy_(source, non_blocking=True)
                # the caller lets go of it at once; its memory must outlive the copy
                source.record_stream(self._outward)
        return _CudaMark(self._outward)


def make_arena(device: torch.device | str) -> HostArena:
    """Return the arena for a device."""
    target = torch.device(device)
    return CudaArena(target) if target.type == "cuda" else HostArena(target)


def aligned(size: int) -> int:
    """Return the next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
