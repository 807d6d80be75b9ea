"""Count what layer streaming moves, and what it keeps on the device."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(kw_only=True)
class TransferLedger:
    """Bytes moved between host and device, and the largest number of layers held at once.

    A copy counts as resident until its memory is really freed, whoever still holds it: autograd, a
    view, or a mistake.
    """

    forward_bytes: int = 0
    """Weights brought to the device for a forward pass, in bytes."""
    backward_bytes: int = 0
    """Weights brought to the device again for a backward pass, in bytes."""
    gradient_bytes: int = 0
    """Gradients brought back to the host, in bytes."""
    peak_layers: int = 0
    """Most layers that had a weight on the device at one time."""
    peak_bytes: int = 0
    """Most bytes of streamed weights on the device at one time."""
    _live: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False)
    _live_bytes: int = field(default=0, repr=False)
    _next_copy: int = field(default=0, repr=False)
    _in_backward: bool = field(default=False, repr=False)

    @property
    def resident_layers(self) -> int:
        """Layers that have a weight on the device now."""
        return len({layer for layer, _ in list(self._live.values())})

    def record_fetch(self, layer: int, copy: Tensor) -> None:
        """Note that `copy`, a weight of layer number `layer`, is now on the device."""
        storage = copy.untyped_storage()  # shared by every view, so it outlives none of them
        size = storage.nbytes()
        if self._in_backward:
            self.backward_bytes += size
        else:
            self.forward_bytes += size
        self._live[self._next_copy] = (layer, size)
        weakref.finalize(storage, self._release, self._next_copy).atexit = False
        self._next_copy += 1
        self._live_bytes += size
        self.peak_layers = max(self.peak_layers, self.resident_layers)
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)

    def record_gradient(self, gradient: Tensor) -> None:
        """Note that `gradient` goes back to the host."""
        self.gradient_bytes += gradient.numel() * gradient.element_size()

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Count the fetches inside as those of a backward pass."""
        self._in_backward = True
        try:
            yield
        finally:
            self._in_backward = False

    def _release(self, copy: int) -> None:
        _, size = self._live.pop(copy)
        self._live_bytes -= size
