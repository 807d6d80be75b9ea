"""Layer streaming: decoder layers live on the host and visit the device when they are needed.

Each layer runs under activation checkpointing. Inside, every parameter is replaced by a copy that
`_Fetch` makes on the device; the copy dies with the layer's forward, is made again when backward
recomputes the layer, and dies with its backward. Autograd does the rest: the gradient of a fetch is
the gradient of the host parameter, so the optimizer works on the host, on the tensors it knows.

    place_for_streaming(model, device)
    with stream_layers(model, device) as stream:
        trainer.train()
    print(stream.ledger)

For full fine-tuning only: modules that are put into a layer later (adapters) would be streamed too,
but their small tensors are better kept on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from mudpuppy.errors import EngineError
from mudpuppy.memory.ledger import TransferLedger
from mudpuppy.quant.blocks import find_decoder_layers

_CACHE_ARGUMENTS = {"past_key_values": None, "use_cache": False}
"""What a decoder layer must not get while it is recomputed: it would fill the cache twice."""


class _Fetch(torch.autograd.Function):
    """Copy a host parameter to the device; bring its gradient back."""

    @staticmethod
    def forward(
        ctx: Any, parameter: Tensor, device: torch.device, ledger: TransferLedger, layer: int
    ) -> Tensor:
        ctx.host = parameter.device
        ctx.ledger = ledger
        # a real copy even from CPU to CPU, so that what a CPU test counts is what a GPU would move
        copy = parameter.detach().to(device, non_blocking=True, copy=True)
        ledger.record_fetch(layer, copy)
        return copy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        ctx.ledger.record_gradient(grad)
        return grad.to(ctx.host), None, None, None


class _Inner(nn.Module):
    """A layer's own forward as a module, so that `functional_call` can lend it other weights.

    Calling the layer itself would run its hooks a second time and come back here for ever.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.run: Callable[..., Any] = layer.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer as it was before it was streamed."""
        return self.run(*args, **kwargs)


class _StreamedForward:
    """Takes the place of the `forward` of one layer."""

    def __init__(
        self, layer: nn.Module, index: int, device: torch.device, ledger: TransferLedger
    ) -> None:
        self.inner = _Inner(layer)
        self.index = index
        self.device = device
        self.ledger = ledger

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer on the device: once without gradients, else again in backward."""
        if not torch.is_grad_enabled():
            return self.run_fetched(*args, **kwargs)
        self.check_checkpointing()
        kwargs |= {name: value for name, value in _CACHE_ARGUMENTS.items() if name in kwargs}
        return checkpoint(
            self.run_fetched, *args, use_reentrant=False, context_fn=self.contexts, **kwargs
        )

    def run_fetched(self, *args: Any, **kwargs: Any) -> Any:
        """Bring every parameter to the device and run the layer with the copies."""
        fetched = {
            name: _Fetch.apply(parameter, self.device, self.ledger, self.index)  # type: ignore[no-untyped-call]
            for name, parameter in self.inner.named_parameters()
        }
        return functional_call(self.inner, fetched, args, kwargs)

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return what surrounds the forward, and what surrounds its recomputation."""
        return nullcontext(), self.ledger.recomputing()

    def check_checkpointing(self) -> None:
        """Refuse a second checkpoint inside ours: it would recompute with the host's weights.

        Raises:
            EngineError: activation checkpointing is switched on in the layer.
        """
        layer = self.inner.layer
        if layer.training and vars(layer).get("gradient_checkpointing", False):
            raise EngineError(
                "activation checkpointing is on in a streamed layer, which has its own",
                hint="train without --gradient-checkpointing; streaming already recomputes",
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> _StreamedForward:
        """Refuse: the copy of the model would run with the weights of this one.

        Raises:
            EngineError: always.
        """
        raise EngineError(
            "a model cannot be copied while its layers are streamed",
            hint="copy it first, or remove the streaming",
        )


class LayerStream:
    """The streaming of one model; leaving it as a context manager, or `remove`, ends it."""

    def __init__(self, layers: nn.ModuleList, device: torch.device, ledger: TransferLedger) -> None:
        self.ledger = ledger
        self._layers = list(layers)
        for index, layer in enumerate(self._layers):
            streamed = _StreamedForward(layer, index, device, ledger)
            _set_on_instance(layer, "forward", streamed)
            _set_on_instance(layer, "_apply", _stay_home(layer))

    def remove(self) -> None:
        """Give every layer its own forward back; a second call does nothing.

        The weights stay where they are, on the host.
        """
        for layer in self._layers:
            del layer.forward
            del layer._apply
        self._layers = []

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


def _set_on_instance(layer: nn.Module, name: str, value: Any) -> None:
    # vars() and not setattr(): nn.Module's own looks for parameters and modules in the value
    vars(layer)[name] = value


def _stay_home(layer: nn.Module) -> Callable[..., nn.Module]:
    """Return an `_apply` for `layer` that lets a new dtype through, but no other device.

    Trainers call `model.to(device)`, which would bring every layer to the device for good.
    """
    apply: Callable[..., Any] = layer._apply

    def apply_at_home(fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def cast(tensor: Tensor) -> Tensor:
            # an empty tensor tells the dtype without moving a byte
            return tensor.to(fn(tensor.new_empty(0)).dtype)

        result: nn.Module = apply(cast, recurse)
        return result

    return apply_at_home


def stream_layers(
    model: nn.Module, device: torch.device | str, *, ledger: TransferLedger | None = None
) -> LayerStream:
    """Stream the decoder layers of `model` to `device`, from now until the result is removed.

    Args:
        model: a decoder-only language model; see `place_for_streaming` for any device but the CPU.
        device: where layers compute.
        ledger: where to count; a new one where none is given.

    Raises:
        EngineError: the model is streamed already, or has no decoder layers.
    """
    layers = find_decoder_layers(model).layers
    if any("forward" in vars(layer) for layer in layers):
        raise EngineError("another forward was put on a decoder layer; is it streamed already?")
    counts = TransferLedger() if ledger is None else ledger
    return LayerStream(layers, torch.device(device), counts)


@torch.no_grad()
def place_for_streaming(model: nn.Module, device: torch.device | str) -> None:
    """Put the parameters of the decoder layers on the host, and everything else on `device`.

    Host memory is pinned where the device is a GPU, so that copies need no staging buffer.
    Parameters keep their identity: an optimizer made before still sees them.
    """
    target = torch.device(device)
    layers = find_decoder_layers(model).layers
    inside = set(layers.modules())
    for module in model.modules():
        if module not in inside:
            module._apply(lambda tensor: tensor.to(target), recurse=False)  # type: ignore[no-untyped-call]
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(target)
    for parameter in layers.parameters():
        home = parameter.data.cpu()
        parameter.data = home.pin_memory() if target.type == "cuda" else home
