"""Bugs in what saves memory: streaming, offload, recomputation."""

from __future__ import annotations

import contextlib
from typing import Any

from harness.mutants.form import change_arguments, mutant, part, replaces


@mutant("full-streaming", caught_by="MPD712")
def streams_nothing() -> None:
    """Accept `--stream` and keep every layer resident (seed 000, before the rewrite)."""

    @replaces(part("engine"), "stream_layers")
    def nothing(*_: Any) -> Any:
        return contextlib.nullcontext()


@mutant("full-streaming", caught_by="MPD702")
def streamed_update_lost() -> None:
    """Lose the gradients of one layer on their way back to the host."""

    @replaces(part("memory.streaming:_Fetch"), "backward")
    def backward(original: Any, context: Any, gradient: Any) -> Any:
        home, *rest = original(context, gradient)
        return (home * 0.0 if context.layer_index == 1 else home, *rest)

    @replaces(part("memory.streaming:_Fetch"), "forward")
    def forward(
        original: Any, context: Any, parameter: Any, device: Any, ledger: Any, layer: int
    ) -> Any:
        context.layer_index = layer
        return original(context, parameter, device, ledger, layer)


@mutant("full-streaming", caught_by="MPD723")
def streamed_gradient_doubled() -> None:
    """Bring the gradients of a layer back twice.

    Once from the forward pass and once from its recomputation.
    """

    @replaces(part("memory.streaming:_Fetch"), "backward")
    def backward(original: Any, context: Any, gradient: Any) -> Any:
        home, *rest = original(context, gradient)
        return (home * 2.0, *rest)


@mutant("full-offload", "lora-offload", caught_by="MPD726")
def offloaded_rate_stale() -> None:
    """Step on the host with the learning rate of the first step, while the schedule goes on."""

    @replaces(part("memory.offload:OffloadedAdamW"), "step")
    def step(original: Any, self: Any, closure: Any = None) -> Any:
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group.get("initial_lr", group["lr"])
        try:
            return original(self, closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


@mutant("full-offload", caught_by="MPD726")
def offloaded_weights_stale() -> None:
    """Copy the weights back before the host has stepped: every step arrives one late."""

    @replaces(part("memory.offload:OffloadedAdamW"), "step")
    def step(original: Any, self: Any, closure: Any = None) -> Any:
        late = {p: host.detach().clone() for p, host in self._hosts.items()}
        result = original(self, closure)
        for parameter, weight in late.items():
            parameter.data.copy_(weight)
        return result


@mutant("full-offload", caught_by="MPD726")
def offloaded_moments_lost() -> None:
    """Begin every step on the host with fresh moments: sign descent, called AdamW."""

    @replaces(part("memory.offload:OffloadedAdamW"), "step")
    def step(original: Any, self: Any, closure: Any = None) -> Any:
        self._adam.state.clear()
        return original(self, closure)


@mutant("full-offload", caught_by="MPD712")
def offload_ignored() -> None:
    """Accept `--zero-offload` and keep the optimizer on the device."""

    @replaces(part("methods.keeping:EngineTrainer"), "create_optimizer")
    def create(original: Any, self: Any, model: Any = None) -> Any:
        self.offload = False
        return original(self, model)


@mutant("lora-recomputing", caught_by="MPD712")
def recomputation_ignored() -> None:
    """Accept `--gradient-checkpointing` and keep every activation."""
    change_arguments(activation_checkpointing=False)
