"""Bugs in ranges that outlast a step: those of int8 training, and the delayed scales of fp8."""

from __future__ import annotations

import importlib
from typing import Any

from harness.mutants.form import change_settings, mutant, part, replaces


def _ranges() -> Any:
    return part("quant.ranges:LayerRanges")


@mutant("qat-static", caught_by="MPD712")
def static_activations_ignored() -> None:
    """Accept `--qat-activations tensor` and give every token a scale of its own."""
    change_settings(part("methods.qat"), "range_settings", qat_activations="token")


@mutant("qat-learned", caught_by="MPD712 MPD723")
def learned_ranges_stand_still() -> None:
    """Give ranges that are to be learnt no gradient but 0: LSQ by name alone."""

    @replaces(part("quant.fake_quant:_Side"), "slope")
    def slope(original: Any, *words: Any) -> Any:
        return original(*words) * 0.0


@mutant("qat-learned", caught_by="MPD707")
def int8_of_unstretched_ranges() -> None:
    """Write the levels that the ranges had before any was learnt, twice as wide."""

    @replaces(part("quant.int8"), "ranges_of")
    def ranges_of(original: Any, layer: Any) -> Any:
        found = original(layer)
        return found._replace(weight=None if found.weight is None else found.weight * 2)


@mutant("qat-static", caught_by="MPD707")
def input_scale_of_an_unsigned_grid() -> None:
    """Save the scale of inputs as if they had 255 levels above 0, where they have 127."""

    @replaces(part("quant.int8"), "_input_scales")
    def scales(original: Any, *words: Any) -> Any:
        return {name: scale * (127 / 255) for name, scale in original(*words).items()}


@mutant("qat-phases", caught_by="MPD722 MPD723")
def rounding_begins_at_once() -> None:
    """Accept `--qat-warmup` and round from the first step on."""

    @replaces(_ranges(), "begin_step")
    def begin(original: Any, self: Any, share: float) -> None:
        original(self, share)
        self.rounding = True


@mutant("qat-resumed", caught_by="MPD727")
def ranges_begin_anew() -> None:
    """Go on from a checkpoint with ranges that have seen nothing."""

    @replaces(part("methods.keeping:EngineTrainer"), "_load_from_checkpoint")
    def load(original: Any, self: Any, *words: Any, **named: Any) -> None:
        original(self, *words, **named)
        for name, tensor in self.model.named_buffers():
            if name.endswith("input_peak"):
                tensor.zero_()


@mutant("fp8-delayed", caught_by="MPD712")
def delayed_scaling_ignored() -> None:
    """Accept `--fp8-scaling delayed` and scale by each tensor."""

    @replaces(part("engine"), "fp8_linears")
    def linears(original: Any, model: Any, path: Any, *_: Any) -> Any:
        return original(model, path)


@mutant("fp8-delayed-resumed", caught_by="MPD727")
def fp8_history_begins_anew() -> None:
    """Go on from a checkpoint with fp8 scales that remember no step."""

    @replaces(part("methods.keeping"), "load_histories")
    def load(*_: Any) -> None:
        return None


@mutant("fp8-delayed", caught_by="MPD722 MPD723")
def fp8_history_of_the_smallest() -> None:
    """Scale by the smallest of the remembered values: every larger one is clipped."""

    @replaces(part("quant.fp8_history:Fp8History"), "peak")
    def peak(_: Any, self: Any, place: int, device: Any) -> Any:
        torch = importlib.import_module("torch")
        seen = self.peaks[place]
        least = torch.where(seen > 0, seen, torch.inf).amin()
        return torch.where(least.isinf(), torch.zeros_like(least), least / 8).to(device)
