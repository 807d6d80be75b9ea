"""A ring of slots on the device, through which the layers of a model come and go.

K slots hold K layers: the one that computes, and those that come next, which are on their way while
it does. Going forward, a layer that is done is written over by the one K places on; the last K stay
where they are, so that going back begins with what is there. A step therefore brings L layers
forward and L - K back: 2 L - K, whatever the order of the calls, and nothing ever returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from mudpuppy.memory.arena import PASSED, HostArena, Mark
from mudpuppy.memory.flat import FlatLayer
from mudpuppy.memory.ledger import TransferLedger


@dataclass
class Slot:
    """Room for one layer on the device."""

    memory: Tensor
    """Its bytes."""
    layer: int | None = None
    """Number of the layer that is in it, or on its way."""
    views: dict[str, Tensor] = field(default_factory=dict)
    """That layer's tensors in it, by name."""
    arrival: Mark = PASSED
    """When the layer is there."""
    free: Mark = PASSED
    """When what computed with the layer before is done, so that it may be written over."""


class SlotRing:
    """The slots of one model on one device.

    Args:
        flats: the layers, in the order in which they run.
        arena: the device.
        count: slots; never more than there are layers.
        ledger: where to count.
    """

    def __init__(
        self, flats: Sequence[FlatLayer], arena: HostArena, count: int, ledger: TransferLedger
    ) -> None:
        self._flats = flats
        self._arena = arena
        self._ledger = ledger
        self.size = max(flat.size for flat in flats)
        """Bytes of one slot."""
        self.count = min(count, len(flats))
        """Number of slots."""
        self._slots = [Slot(arena.make_slot(self.size)) for _ in range(self.count)]
        self._current: Slot | None = None

    def use(self, layer: int, *, backward: bool) -> dict[str, Tensor]:
        """Return the tensors of a layer on the device, there by the time the device computes next.

        The layer that was used before is done, then; those that come next set out.
        """
        self.release()
        slot = self._find(layer) or self._fetch(layer, self._ahead(layer, backward), backward)
        self._current = slot
        slot.arrival.hold_computation()
        self._ledger.record_use(layer)
        ahead = self._ahead(layer, backward)
        for index in ahead[1:]:
            if self._find(index) is None:
                self._fetch(index, ahead, backward)
        return slot.views

    def release(self) -> None:
        """Note that the device has been given all work with the layer that was used last."""
        if self._current is not None:
            self._current.free = self._arena.mark()
            self._current = None

    def forget(self) -> None:
        """Take nothing that is in the slots for granted: weights may have changed on the host."""
        self.release()
        for slot in self._slots:
            self._empty(slot)

    def close(self) -> None:
        """Give the memory back."""
        self.forget()
        self._arena.give_back(self.size * self.count)
        self._slots = []

    def _ahead(self, layer: int, backward: bool) -> list[int]:
        """Return the layers that the slots should hold while this one computes, itself first."""
        if backward:
            return list(range(layer, max(layer - self.count, -1), -1))
        return list(range(layer, min(layer + self.count, len(self._flats))))

    def _find(self, layer: int) -> Slot | None:
        return next((slot for slot in self._slots if slot.layer == layer), None)

    def _fetch(self, layer: int, wanted: Sequence[int], backward: bool) -> Slot:
        """Send a layer on its way, into a slot whose own layer is not wanted soon."""
        # of two that are done, the earlier one: going back, it comes last
        unwanted = [slot for slot in self._slots if slot.layer not in wanted]
        slot = min(unwanted, key=lambda one: -1 if one.layer is None else one.layer)
        self._empty(slot)
        flat = self._flats[layer]
        slot.arrival = self._arena.bring(flat.copies_to(slot.memory), slot.free)
        slot.layer, slot.views = layer, flat.views_of(slot.memory)
        self._ledger.record_fetch(layer, flat.size, in_backward=backward)
        return slot

    def _empty(self, slot: Slot) -> None:
        if slot.layer is not None:
            self._ledger.record_leave(slot.layer)
        slot.layer, slot.views = None, {}
