"""Run samples through the decoder blocks of a model one block at a time, as the model itself would.

What every block is called with beside the hidden states is noted in one pass in which the blocks
hand their input on and compute nothing, so that no block's weights are needed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Mapping[str, Tensor]
"""One sample as a model's forward takes it: `input_ids`, perhaps `attention_mask`."""
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a block, without its hidden states."""


@dataclass(frozen=True)
class Route:
    """How one sample runs through the blocks."""

    inputs: dict[str, Tensor]
    """The sample itself, on the model's device."""
    calls: list[Call]
    """What every block is called with; families mix kinds of attention."""

    @property
    def mask(self) -> Tensor | None:
        """(batch, length), true where there is a token; None where there is no padding."""
        mask = self.inputs.get("attention_mask")
        return None if mask is None else mask.bool()

    def run(self, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """Return what the block of that index puts out for hidden states (batch, length, width)."""
        args, named = self.calls[index]
        parameter = next(block.parameters(), None)
        device = hidden.device if parameter is None else parameter.device
        output = block(hidden.to(device), *args, **named)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result


class _FirstBlockSeen(Exception):
    """Ends a pass once the first block has run."""


class BlockWalk:
    """The blocks of one model, and the way to them and from them.

    Args:
        model: a decoder-only language model of transformers. Of the blocks, `enter` needs the
            weights of the first one only, and `leave` none.
        layers: its blocks.
    """

    def __init__(self, model: Any, layers: nn.ModuleList) -> None:
        self._model = model
        self._layers = layers
        self._wraps: bool | None = None
        """Whether blocks put out a tuple; not known before the first sample."""

    @property
    def device(self) -> torch.device:
        """Where the inputs of the model go."""
        device: torch.device = self._model.get_input_embeddings().weight.device
        return device

    def enter(
        self, samples: Sequence[Inputs], *, is_heard: bool = True
    ) -> Iterator[tuple[Route, Tensor]]:
        """Yield route and first hidden states (batch, length, width) of every sample.

        Args:
            samples: what to run.
            is_heard: whether hooks on the model itself hear of the samples; those that only
                measure pass them by.
        """
        call: Any = self._model if is_heard else self._model.forward
        for sample in samples:
            inputs = {k: value.to(self.device) for k, value in sample.items() if k != "labels"}
            if self._wraps is None:
                self._wraps = self._find_form(inputs)
            first: list[Tensor] = []
            calls: list[Call] = []

            def hand_on(*args: Any, first: Any = first, calls: Any = calls, **named: Any) -> Any:
                hidden = args[0] if args else named.pop("hidden_states")
                first.append(hidden)
                calls.append((args[1:], named))
                return self._as_output(hidden)

            with self._standing_in(hand_on):
                call(**inputs, use_cache=False)
            yield Route(inputs, calls), first[0]

    def leave(self, route: Route, hidden: Tensor) -> Tensor:
        """Return the logits (batch, length, vocabulary) behind the last block's output."""
        output = self._as_output(hidden.to(self.device))
        with self._standing_in(lambda *_, **__: output):
            logits: Tensor = self._model.forward(**route.inputs, use_cache=False).logits
        return logits

    def _as_output(self, hidden: Tensor) -> Any:
        return (hidden,) if self._wraps else hidden

    def _find_form(self, inputs: dict[str, Tensor]) -> bool:
        """Return whether the first block puts out a tuple."""
        found: list[bool] = []

        def see(_: nn.Module, __: Any, output: Any) -> None:
            found.append(isinstance(output, tuple))
            raise _FirstBlockSeen

        hook = self._layers[0].register_forward_hook(see)
        try:
            self._model.forward(**inputs, use_cache=False)
        except _FirstBlockSeen:
            return found[0]
        finally:
            hook.remove()
        return False

    @contextmanager
    def _standing_in(self, forward: Callable[..., Any]) -> Iterator[None]:
        """Let `forward` stand for every block's own inside."""
        for layer in self._layers:
            layer.forward = forward
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward  # the class's own is left


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside, and every module back to its own mode afterwards."""
    # by name: most of the linear layers are other modules afterwards
    training = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        yield
    finally:
        for name, mode in training.items():
            model.get_submodule(name).training = mode
