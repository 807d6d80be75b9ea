"""Layer streaming: decoder layers live on the host and visit the device when they are needed.

Each layer runs under activation checkpointing. Inside, its weights are views into a slot of a ring
(`mudpuppy.memory.ring`), which were brought there while the layers before computed; when backward
recomputes the layer they are brought once more. So the device holds K layers, what is in no layer,
and a checkpoint a layer, however many layers there are.

Gradients leave the device one by one as backward makes them, and accumulate on the host in the
`grad` of the parameter that everybody knows: clipping, loss scaling and optimizers see host tensors
and need not know of any of this. `mudpuppy.memory.offload.StreamedAdamW` steps a layer at a time,
beside the device's work.

    place_for_streaming(model, device)
    with stream_layers(model, device) as stream:
        trainer.train()
    print(stream.ledger)

Streamed are the parameters of a layer, if any layer trains whole; where only an adapter trains, the
frozen ones, packed 4-bit weights as they are: what trains is small then, and stays on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from mudpuppy.errors import EngineError
from mudpuppy.memory.arena import HostArena, Mark, make_arena, size_of
from mudpuppy.memory.flat import FlatLayer
from mudpuppy.memory.ledger import TransferLedger
from mudpuppy.memory.ring import SlotRing
from mudpuppy.memory.streamed_forward import StreamedForward
from mudpuppy.memory.visitors import choose_visitors, keep_at_home, place_for_streaming
from mudpuppy.quant.blocks import find_decoder_layers

__all__ = ["LayerStream", "place_for_streaming", "stream_layers", "stream_of"]

SLOTS = 2
"""Layers on the device where nobody says how many: one computes while the next one comes."""
IN_FLIGHT = 2
"""Layers whose gradients may be on their way to the host before backward waits for them."""


class _Lend(torch.autograd.Function):
    """Stand a slot's view in a parameter's place, and hand its gradient over."""

    @staticmethod
    def forward(
        ctx: Any, parameter: Tensor, view: list[Tensor], receive: Callable[[Tensor], None]
    ) -> Tensor:
        del parameter  # only its wish for a gradient counts
        ctx.receive = receive
        return view[0].detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        (grad,) = grads
        ctx.receive(grad)
        return None, None, None


class LayerStream:
    """The streaming of one model; leaving it as a context manager, or `remove`, ends it.

    Args:
        model: whose decoder layers are streamed.
        arena: the device.
        slots: layers that it holds at one time.
        ledger: where to count.
        gathers: whether frozen weights are copied into a buffer a layer; see `FlatLayer`.
    """

    def __init__(
        self,
        model: nn.Module,
        arena: HostArena,
        *,
        slots: int = SLOTS,
        ledger: TransferLedger | None = None,
        gathers: bool = True,
    ) -> None:
        self.ledger = TransferLedger() if ledger is None else ledger
        self.arena = arena
        self.slots = slots
        self._layers = list(find_decoder_layers(model).layers)
        visitors = choose_visitors(model, self._layers, arena.device)
        self.when_done: Callable[[int, Sequence[Mark]], None] | None = None
        """Called with a layer's number when all its gradients of a backward pass have set out, and
        with the marks of their arrival."""
        self.flats = [FlatLayer(tensors, arena, gathers=gathers) for tensors in visitors]
        """The layers as they lie on the host, in the order in which they run."""
        self._ring: SlotRing | None = None
        self._last = len(self._layers)  # no layer can come behind it: the first pass is a new one
        self._is_recomputing = self._in_backward = False
        self._going_back: int | None = None
        self._passes = 0
        self._arrivals: list[list[Mark]] = [[] for _ in self._layers]
        self._sums: list[Future[None]] = []
        self._worker: ThreadPoolExecutor | None = None
        listen: Any = model.register_state_dict_pre_hook
        self._hook = listen(lambda *_: self.settle())
        for index, layer in enumerate(self._layers):
            _set_on_instance(layer, "forward", StreamedForward(layer, index, self))
            _set_on_instance(layer, "_apply", keep_at_home(layer, self.settle))

    def lend(self, index: int) -> dict[str, Tensor]:
        """Return what stands in the place of a layer's tensors, by name, on the device."""
        backward = self._is_recomputing
        if backward and not self._in_backward:
            # called at the end of this backward pass, whatever it is a pass of
            torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)
            self._in_backward = True
        elif not backward and (self._in_backward or index <= self._last):
            self._begin_pass()
            self._passes += torch.is_grad_enabled()
        ring = self._open_ring()
        self._last = index
        if backward:
            self._finish_layer()
            self._going_back = index
            self._wait_for_gradients(index + IN_FLIGHT)
        flat = self.flats[index]
        views = ring.use(index, backward=backward)
        return {name: self._lend_one(index, flat, name, view) for name, view in views.items()}

    def _lend_one(self, index: int, flat: FlatLayer, name: str, view: Tensor) -> Tensor:
        own = flat.tensors[name]
        if not own.requires_grad:
            return view
        receive = _Receiver(self, index, name)
        lent: Tensor = _Lend.apply(own, [view], receive)  # type: ignore[no-untyped-call]
        return lent

    def receive(self, index: int, name: str, gradient: Tensor) -> None:
        """Send a gradient to the host, where it is added to what is there."""
        flat = self.flats[index]
        parameter = flat.tensors[name]
        self.ledger.record_gradient(index, size_of(gradient))
        arena = self.arena
        if parameter.grad is None:
            target = flat.slope_of(name)
            self._arrivals[index].append(arena.take([(gradient, target)]))
            parameter.grad = target
            return
        if not arena.overlaps:
            arena.outward += size_of(gradient)
            parameter.grad.add_(gradient.to(parameter.grad.device))
            return
        passing = arena.make_host(size_of(gradient)).view(gradient.dtype).view(gradient.shape)
        arrival = arena.take([(gradient, passing)])
        self._arrivals[index].append(arrival)
        self._sums.append(self.beside(_adder(parameter.grad, passing, arrival)))

    def beside(self, work: Callable[[], None]) -> Future[None]:
        """Do some work on the host in the order it comes in, beside the device's; or at once."""
        if not self.arena.overlaps:
            done: Future[None] = Future()
            work()
            done.set_result(None)
            return done
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="stream")
        return self._worker.submit(work)

    def settle(self) -> None:
        """Wait until the weights on the host are those of the last step."""
        for flat in self.flats:
            flat.settle()

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Take the layers that are lent inside as those of a backward pass."""
        self._is_recomputing = True
        try:
            yield
        finally:
            self._is_recomputing = False

    def remove(self) -> None:
        """Give every layer its own forward back; a second call does nothing.

        The weights stay where they are, on the host.
        """
        if not self._layers:
            return
        self._hook.remove()
        for layer in self._layers:
            del layer.forward
            del layer._apply
        self._layers = []
        try:
            self.settle()
        finally:
            if self._worker is not None:
                self._worker.shutdown()
                self._worker = None
            self._close_ring()

    def _begin_pass(self) -> None:
        """Take nothing for granted: the weights may be others by now, and of another type."""
        self._in_backward, self._last = False, -1
        if self._ring is not None:
            self._ring.forget()
        for flat in self.flats:
            if not flat.is_laid_out():
                flat.settle()
                flat.lay_out()
                self._close_ring()

    def _open_ring(self) -> SlotRing:
        if self._ring is None:
            self._ring = SlotRing(self.flats, self.arena, self.slots, self.ledger)
        return self._ring

    def _close_ring(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def _wait_for_gradients(self, index: int) -> None:
        """Let backward not run further ahead of the copies than a few layers.

        The device's memory for gradients is bounded by this, however slow the way to the host is.
        """
        if index < len(self._arrivals):
            for arrival in self._arrivals[index]:
                arrival.wait()
            self._arrivals[index].clear()

    def _finish_layer(self) -> None:
        """Tell that backward is done with the layer before.

        Not where two forward passes went before: backward will come to the layer once more.
        """
        index, self._going_back = self._going_back, None
        if index is not None and self.when_done is not None and self._passes == 1:
            self.when_done(index, tuple(self._arrivals[index]))

    def _end_backward(self) -> None:
        """Wait until every gradient of the pass is on the host, whole."""
        self._finish_layer()
        self._passes = 0
        if self._ring is not None:
            self._ring.forget()
        for index in range(len(self._arrivals)):
            self._wait_for_gradients(index)
        sums, self._sums = self._sums, []
        for future in sums:
            future.result()
        self._in_backward, self._last = False, len(self._layers)

    def __enter__(self) -> LayerStream:
        """Return the stream itself: it works from the moment it is made."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the streaming."""
        self.remove()


class _Receiver:
    """Takes the gradient of one parameter for its stream."""

    def __init__(self, stream: LayerStream, index: int, name: str) -> None:
        self._stream, self._index, self._name = stream, index, name

    def __call__(self, gradient: Tensor) -> None:
        with torch.no_grad():
            self._stream.receive(self._index, self._name, gradient)


def _adder(total: Tensor, part: Tensor, arrival: Mark) -> Callable[[], None]:
    """Return the work of adding what arrives to a gradient."""

    def add() -> None:
        arrival.wait()
        with torch.no_grad():
            total.add_(part)

    return add


def _set_on_instance(layer: nn.Module, name: str, value: Any) -> None:
    # vars() and not setattr(): nn.Module's own looks for parameters and modules in the value
    vars(layer)[name] = value


def stream_layers(
    model: nn.Module,
    device: torch.device | str,
    *,
    slots: int = SLOTS,
    ledger: TransferLedger | None = None,
    arena: HostArena | None = None,
    gathers: bool = True,
) -> LayerStream:
    """Stream the decoder layers of `model` to `device`, from now until the result is removed.

    Args:
        model: a decoder-only language model; see `place_for_streaming` for any device but the CPU.
        device: where layers compute.
        slots: layers that the device holds at one time, at least 1.
        ledger: where to count; a new one where none is given.
        arena: the device's memory; a new one, without a bound, where none is given.
        gathers: whether frozen weights are copied into a buffer a layer; see `FlatLayer`.

    Raises:
        EngineError: the model is streamed already, or has no decoder layers.
    """
    layers = find_decoder_layers(model).layers
    if any("forward" in vars(layer) for layer in layers):
        raise EngineError("another forward was put on a decoder layer; is it streamed already?")
    chosen = make_arena(device) if arena is None else arena
    return LayerStream(model, chosen, slots=slots, ledger=ledger, gathers=gathers)


def stream_of(model: nn.Module) -> LayerStream | None:
    """Return the stream that a model's layers are lent by, if there is one."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, StreamedForward) and isinstance(forward.stream, LayerStream):
            return forward.stream
    return None
