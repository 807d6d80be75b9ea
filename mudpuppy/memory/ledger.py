"""Count what layer streaming moves, what it keeps on the device, and in which order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

MAX_EVENTS = 4096
"""Events that are kept; the oldest go first."""


@dataclass(frozen=True)
class Event:
    """One thing that happened to a layer."""

    kind: str
    """`bring` (to the device), `hold` (it computes), `free` (its slot may be written), `gradient`
    (to the host) or `step` (its weights change)."""
    layer: int
    """Number of the layer."""
    size: int = 0
    """Bytes that moved."""


@dataclass(kw_only=True)
class TransferLedger:
    """Bytes moved between host and device, and the largest number of layers held at once.

    These are the stream's own books. That nothing beside them stays on the device, such as a weight
    that autograd keeps, is for `mudpuppy.memory.meter` to show, which counts every tensor there is.
    """

    forward_bytes: int = 0
    """Weights brought to the device in forward passes, in bytes."""
    backward_bytes: int = 0
    """Weights brought to the device in backward passes, in bytes."""
    gradient_bytes: int = 0
    """Gradients brought back to the host, in bytes."""
    fetches: int = 0
    """Layers brought to the device."""
    peak_layers: int = 0
    """Most layers that were on the device at one time."""
    peak_bytes: int = 0
    """Most bytes of streamed weights on the device at one time."""
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=MAX_EVENTS), repr=False)
    """What happened, in order."""
    _held: dict[int, int] = field(default_factory=dict, repr=False)

    @property
    def resident_layers(self) -> int:
        """Layers that are on the device now."""
        return len(self._held)

    def record_fetch(self, layer: int, size: int, *, in_backward: bool) -> None:
        """Note that a layer of `size` bytes comes to the device."""
        if in_backward:
            self.backward_bytes += size
        else:
            self.forward_bytes += size
        self.fetches += 1
        self._held[layer] = size
        self.peak_layers = max(self.peak_layers, len(self._held))
        self.peak_bytes = max(self.peak_bytes, sum(self._held.values()))
        self.events.append(Event("bring", layer, size))

    def record_leave(self, layer: int) -> None:
        """Note that another layer may be written over this one."""
        self._held.pop(layer, None)
        self.events.append(Event("free", layer))

    def record_use(self, layer: int) -> None:
        """Note that a layer begins to compute."""
        self.events.append(Event("hold", layer))

    def record_gradient(self, layer: int, size: int) -> None:
        """Note that a gradient of `size` bytes goes to the host."""
        self.gradient_bytes += size
        self.events.append(Event("gradient", layer, size))

    def record_step(self, layer: int) -> None:
        """Note that the optimizer changes a layer's weights."""
        self.events.append(Event("step", layer))
