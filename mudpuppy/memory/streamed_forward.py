"""The forward of one streamed layer: checkpointed, and run with weights that are lent to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from mudpuppy.errors import EngineError

_CACHE_ARGUMENTS = {"past_key_values": None, "use_cache": False}
"""What a decoder layer must not get while it is recomputed: it would fill the cache twice."""


class Lender(Protocol):
    """Lends a layer its tensors on the device."""

    def lend(self, index: int) -> dict[str, Tensor]:
        """Return what stands in the place of a layer's tensors, by name."""

    def recomputing(self) -> AbstractContextManager[None]:
        """Take the layers that are lent inside as those of a backward pass."""


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


class StreamedForward:
    """Takes the place of the `forward` of one layer."""

    def __init__(self, layer: nn.Module, index: int, stream: Lender) -> None:
        self.inner = _Inner(layer)
        self.index = index
        self.stream = stream

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer on the device: once without gradients, else again in backward."""
        if not torch.is_grad_enabled():
            return self.run_lent(*args, **kwargs)
        self.check_checkpointing()
        kwargs |= {name: value for name, value in _CACHE_ARGUMENTS.items() if name in kwargs}
        return checkpoint(
            self.run_lent, *args, use_reentrant=False, context_fn=self.contexts, **kwargs
        )

    def run_lent(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer with the weights in its slot."""
        lent = self.stream.lend(self.index)
        return functional_call(
            self.inner, {f"layer.{name}": t for name, t in lent.items()}, args, kwargs
        )

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return what surrounds the forward, and what surrounds its recomputation."""
        return nullcontext(), self.stream.recomputing()

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

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamedForward:
        """Refuse: the copy of the model would run with the weights of this one.

        Raises:
            EngineError: always.
        """
        raise EngineError(
            "a model cannot be copied while its layers are streamed",
            hint="copy it first, or remove the streaming",
        )
