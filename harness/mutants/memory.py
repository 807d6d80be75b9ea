"""Bugs in what saves memory: streaming, offload, recomputation."""

from __future__ import annotations

import contextlib
from typing import Any

from harness.mutants.form import change_arguments, mutant, part, replaces


@mutant("full-streaming", caught_by="MPD712")
def streams_nothing() -> None:
    """Accept `--stream` and keep every layer resident (seed 000, before the rewrite)."""

    @replaces(part("engine"), "stream_layers")
    def nothing(*_: Any, **__: Any) -> Any:
        return contextlib.nullcontext()


@mutant("full-streaming", caught_by="MPD702")
def streamed_update_lost() -> None:
    """Lose the gradients of one layer on their way back to the host."""

    @replaces(part("memory.streaming:LayerStream"), "receive")
    def receive(original: Any, self: Any, index: int, name: str, gradient: Any) -> None:
        original(self, index, name, gradient * 0.0 if index == 1 else gradient)


@mutant("full-streaming", caught_by="MPD723")
def streamed_gradient_doubled() -> None:
    """Bring the gradients of a layer back twice.

    Once from the forward pass and once from its recomputation.
    """

    @replaces(part("memory.streaming:LayerStream"), "receive")
    def receive(original: Any, self: Any, index: int, name: str, gradient: Any) -> None:
        original(self, index, name, gradient * 2.0)


@mutant("full-streaming-accumulating", caught_by="MPD723")
def streamed_gradient_replaced() -> None:
    """Keep the gradients of the last batch alone, where those of several should add up."""

    @replaces(part("memory.streaming:LayerStream"), "receive")
    def receive(original: Any, self: Any, index: int, name: str, gradient: Any) -> None:
        self.flats[index].tensors[name].grad = None
        original(self, index, name, gradient)


@mutant("full-streaming-accumulating", caught_by="MPD722 MPD723")
def wrong_layer_brought() -> None:
    """Recompute a layer with the weights of the one behind it, which was fetched in its place."""

    @replaces(part("memory.ring:SlotRing"), "_fetch")
    def fetch(original: Any, self: Any, layer: int, wanted: Any, backward: bool) -> Any:
        slot = original(self, layer, wanted, backward)
        if backward:
            another = self._flats[layer + 1].copies_to(slot.memory)
            slot.arrival = self._arena.bring(another, slot.free)
        return slot


@mutant("full-streaming", caught_by="MPD722 MPD723")
def slot_reused_too_early() -> None:
    """Let the next layer come into the slot in which the one before it still computes."""

    @replaces(part("memory.ring:SlotRing"), "use")
    def use(original: Any, self: Any, layer: int, *, backward: bool) -> Any:
        views = original(self, layer, backward=backward)
        if layer + 1 < len(self._flats):
            following = self._flats[layer + 1].copies_to(self._current.memory)
            self._arena.bring(following, self._current.free)
        return views


@mutant("full-streaming-clipped", caught_by="MPD723 MPD726")
def streamed_step_before_the_clip() -> None:
    """Step each layer while backward goes on, though the norm to clip to is not known yet."""
    offload = part("memory.offload")

    @replaces(offload, "_listeners")
    def listeners(original: Any, optimizer: Any, when: str) -> bool:
        return bool(when == "post" and original(optimizer, when))

    @replaces(part("methods.keeping:EngineTrainer"), "create_optimizer")
    def create(original: Any, self: Any, model: Any = None) -> Any:
        made = original(self, model)
        made.step_early_when(lambda: True)
        return made


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
        pairs = [
            pair for one in self._visiting for pair in zip(one.parameters, one.masters, strict=True)
        ]
        late = {parameter: master.clone() for parameter, master in pairs}
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
