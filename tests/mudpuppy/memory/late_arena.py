"""A device whose copies are as late as they may be, and whose free slots are worth nothing.

A copy to the device writes NaN at once and the layer only when the computation waits for it; a copy
to the host leaves NaN there until the host waits; and what is in a slot is gone as soon as the slot
is said to be free. Whoever forgets a wait, or frees a slot too early, trains on NaN.
"""

import threading

import torch

from mudpuppy.memory.arena import PASSED, HostArena, Mark

GARBAGE = 0xFF
"""A byte that makes NaN of every floating type, and -1 of integers."""


class LateMark(Mark):
    def __init__(self, work) -> None:
        self._work = work
        self._lock = threading.Lock()

    @torch.no_grad()
    def wait(self) -> None:
        with self._lock:  # two threads may wait for one copy
            for source, target in self._work:
                target.copy_(source)
            self._work = []

    def hold_computation(self) -> None:
        self.wait()


def spoil(tensor: torch.Tensor) -> None:
    tensor.detach().reshape(-1).view(torch.uint8).fill_(GARBAGE)


class LateArena(HostArena):
    overlaps = True

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))

    def make_slot(self, size):
        slot = super().make_slot(size)
        spoil(slot)
        return slot

    def make_host(self, size):
        buffer = super().make_host(size)
        spoil(buffer)
        return buffer

    def bring(self, copies, after):
        after.wait()
        for _, target in copies:
            spoil(target)
        return LateMark(list(copies))

    def take(self, copies):
        # what the device has now is what it would copy later: its memory is kept for it
        held = [(source.clone(), target) for source, target in copies]
        for _, target in held:
            spoil(target)
        return LateMark(held)

    def mark(self):
        return PASSED
