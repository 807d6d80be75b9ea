"""One buffer for many tensors: a layer as it lies on the host, and its views on the device.

A layer of fifteen tensors crosses in one copy where they lie in one buffer. The tensors keep their
identity and a storage of their own (over the same memory), so that what saves, hashes or copies a
model sees nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mudpuppy.memory.arena import Copy, HostArena, aligned, size_of


@dataclass(frozen=True)
class Place:
    """Where one tensor lies in a buffer."""

    offset: int
    """Bytes before it."""
    size: int
    """Bytes of its elements."""
    shape: torch.Size
    """Its shape."""
    dtype: torch.dtype
    """Its type."""

    def view(self, buffer: Tensor) -> Tensor:
        """Return the tensor in a buffer of bytes; writing to either writes to both."""
        # .data: what is written into a slot later is no change of what autograd saved from it
        part = buffer.data[self.offset : self.offset + self.size]
        return part.view(self.dtype).view(self.shape)

    def own(self, buffer: Tensor) -> Tensor:
        """Return the tensor in a buffer of the host, with a storage of its own.

        Views of one storage would be taken for tied weights by everything that saves a model.
        """
        part = torch.from_numpy(buffer.numpy()[self.offset : self.offset + self.size])
        return part.view(self.dtype).view(self.shape)


def plan_places(tensors: Sequence[Tensor]) -> list[Place]:
    """Return where the tensors lie in one buffer, in their order, each at an aligned offset."""
    places, offset = [], 0
    for tensor in tensors:
        places.append(Place(offset, size_of(tensor), tensor.shape, tensor.dtype))
        offset = aligned(offset + size_of(tensor))
    return places


def end_of(places: Sequence[Place]) -> int:
    """Return the bytes of a buffer that holds them."""
    return aligned(places[-1].offset + places[-1].size) if places else 0


class Strip:
    """Tensors of one type, one behind the other in a buffer of the host.

    Args:
        places: where they lie, counted from the start of the buffer of which they are a part.
        arena: where host memory comes from.
        buffer: the memory; new memory, which begins with the first of them, where none is given.
    """

    def __init__(
        self, places: Sequence[Place], arena: HostArena, buffer: Tensor | None = None
    ) -> None:
        self.places = list(places)
        self._start = places[0].offset if buffer is None and places else 0
        size = end_of(places) - self._start
        self.buffer = arena.make_host(size) if buffer is None else buffer
        """Its bytes."""

    def own(self, index: int) -> Tensor:
        """Return one tensor, with a storage of its own over the same memory."""
        place = self.places[index]
        return replace(place, offset=place.offset - self._start).own(self.buffer)

    def joined(self, first: int, last: int) -> Tensor:
        """Return neighbours, `last` included, as one tensor of one dimension.

        What lies between them is in it, too; see `follows`.
        """
        end = self.places[last].offset + self.places[last].size
        part = self.buffer[self.places[first].offset - self._start : end - self._start]
        return part.view(self.places[first].dtype)

    def follows(self, index: int) -> bool:
        """Return whether a tensor begins where the one before it ends."""
        before = self.places[index - 1]
        return before.offset + before.size == self.places[index].offset


class FlatLayer:
    """The tensors of one layer that are streamed, in one buffer on the host.

    Args:
        tensors: parameters and buffers by their names in the layer.
        arena: where host memory comes from.
        gathers: whether they are copied into one buffer. Frozen weights that are mapped from a file
            may stay where they are: then a layer comes in one copy a tensor, straight from the
            file's pages, and takes no memory of the host that the system could not reclaim.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], arena: HostArena, *, gathers: bool = True
    ) -> None:
        # What trains comes first, matrices before vectors: neighbours then step in one call.
        self.tensors = dict(sorted(tensors.items(), key=lambda item: _rank(item[1])))
        self._arena = arena
        self._gathers = gathers
        self._buffer: Tensor | None = None
        self._slopes: Tensor | None = None
        self.places: dict[str, Place] = {}
        """Where each tensor lies, by name."""
        self.size = 0
        """Bytes of the layer in a slot."""
        self.pending: Future[None] | None = None
        """A step on these weights that may still be under way."""
        self.lay_out()

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, in the order in which they lie."""
        return {
            name: t
            for name, t in self.tensors.items()
            if isinstance(t, nn.Parameter) and t.requires_grad
        }

    @torch.no_grad()
    def lay_out(self) -> None:
        """Put the tensors into a buffer, in the types that they have now."""
        places = plan_places(list(self.tensors.values()))
        self.places = dict(zip(self.tensors, places, strict=True))
        self.size = end_of(places)
        self._slopes = None
        if not self._gathers:
            return
        buffer = self._arena.make_host(self.size)
        for name, tensor in self.tensors.items():
            own = self.places[name].own(buffer)
            own.copy_(tensor.detach())
            tensor.data = own
        self._buffer = buffer

    def is_laid_out(self) -> bool:
        """Return whether every tensor still lies where it was put: a cast takes it elsewhere."""
        start = 0 if self._buffer is None else self._buffer.data_ptr()
        return all(
            tensor.dtype == self.places[name].dtype
            and (not self._gathers or tensor.data_ptr() == start + self.places[name].offset)
            for name, tensor in self.tensors.items()
        )

    def settle(self) -> None:
        """Wait until no step is under way that writes to the weights."""
        if self.pending is not None:
            future, self.pending = self.pending, None
            future.result()

    def copies_to(self, slot: Tensor) -> list[Copy]:
        """Return the copies that bring the layer into a slot: one, where it was gathered."""
        self.settle()
        if self._buffer is not None:
            return [(self._buffer, slot[: self.size])]
        return [(t.detach(), self.places[name].view(slot)) for name, t in self.tensors.items()]

    def views_of(self, slot: Tensor) -> dict[str, Tensor]:
        """Return the layer's tensors in a slot, by name."""
        return {name: place.view(slot) for name, place in self.places.items()}

    def slope_of(self, name: str) -> Tensor:
        """Return where the gradient of a parameter lies on the host, whatever is in there."""
        return self.places[name].own(self._slope_buffer())

    def is_slope(self, name: str, tensor: Tensor) -> bool:
        """Return whether a tensor is the gradient that lies here."""
        return tensor.data_ptr() == self._slope_buffer().data_ptr() + self.places[name].offset

    def weights(self, names: Sequence[str]) -> Strip:
        """Return trained parameters that follow each other in `trained`, as they lie."""
        assert self._buffer is not None, "what trains is gathered"
        return Strip([self.places[name] for name in names], self._arena, self._buffer)

    def slopes(self, names: Sequence[str]) -> Strip:
        """Return the gradients of the same parameters, as they lie."""
        return Strip([self.places[name] for name in names], self._arena, self._slope_buffer())

    def _slope_buffer(self) -> Tensor:
        if self._slopes is None:
            # what trains comes first, so the places of the weights serve the gradients too
            trained = [self.places[name] for name in self.trained]
            self._slopes = self._arena.make_host(end_of(trained))
        return self._slopes


def _rank(tensor: Tensor) -> tuple[bool, bool]:
    return not tensor.requires_grad, tensor.ndim < 2
