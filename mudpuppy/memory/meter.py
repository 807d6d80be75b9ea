"""Count every byte on a device, whoever holds it: the accountant of residency, on any machine.

On a CPU, where nothing tells host from device, a meter takes every tensor for one on the device
that was not declared to be on the host. It watches each operation, forward and backward, and lets
go of a storage when its memory is freed, by whatever reference that was the last. So it counts what
streaming is meant to avoid: a weight that autograd keeps, an activation that is not recomputed, a
gradient that stays.

    arena = CountedArena(budget=64 << 20)
    with stream_layers(model, "cpu", arena=arena), arena.meter:
        train()
    print(arena.meter.peak)

On a GPU, `torch.cuda.max_memory_allocated` says the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from mudpuppy.memory.arena import DeviceFull, HostArena


class DeviceMeter(TorchDispatchMode):
    """Counts the storages that are alive and not on the host, while it is entered.

    Args:
        is_home: whether an address of memory is the host's; nothing is, by default.
        budget: bytes that may be alive at one time; no bound where none is given.
    """

    def __init__(
        self, is_home: Callable[[int], bool] | None = None, *, budget: int | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._is_home = is_home or (lambda address: False)
        self._budget = budget
        self._sizes: dict[int, int] = {}
        self.live = 0
        """Bytes on the device now."""
        self.peak = 0
        """Most bytes on the device at one time."""

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were there before.

        Raises:
            DeviceFull: they are beyond the budget.
        """
        for tensor in tensors:
            storage = tensor.untyped_storage()
            address, size = storage.data_ptr(), storage.nbytes()
            if not size or address in self._sizes or self._is_home(address):
                continue
            self._sizes[address] = size
            self.live += size
            weakref.finalize(storage, self._release, address).atexit = False
            self.peak = max(self.peak, self.live)
            if self._budget is not None and self.live > self._budget:
                raise DeviceFull(
                    f"{self.live:,} bytes are on the device, whose budget is {self._budget:,}"
                )

    def count_model(self, model: nn.Module) -> None:
        """Count the weights and buffers of a model that are not on the host."""
        self.count([*model.parameters(), *model.buffers()])

    def _release(self, address: int) -> None:
        self.live -= self._sizes.pop(address)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        self.count(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


class CountedArena(HostArena):
    """A device that is made of counted bytes of the host, with a budget that nothing escapes.

    Slots are asked for as on any device; whatever else the computation keeps is seen by the meter.

    Args:
        budget: bytes that may be alive at one time; no bound where none is given.
    """

    def __init__(self, *, budget: int | None = None) -> None:
        super().__init__(torch.device("cpu"), budget=budget)
        self._spans: dict[int, int] = {}
        self.meter = DeviceMeter(self._is_host, budget=budget)
        """To be entered around what is counted."""

    def make_host(self, size: int) -> Tensor:
        """Return bytes that the meter takes for the host's."""
        with _disable_current_modes():  # else they would be counted before they are known
            buffer = super().make_host(size)
        storage = buffer.untyped_storage()
        self._spans[storage.data_ptr()] = storage.nbytes()
        weakref.finalize(storage, self._spans.pop, storage.data_ptr(), None).atexit = False
        return buffer

    @property
    def host_bytes(self) -> int:
        """Bytes of the host that were asked for and are alive."""
        return sum(self._spans.values())

    def _is_host(self, address: int) -> bool:
        return any(start <= address < start + size for start, size in self._spans.items())
