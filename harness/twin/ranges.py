"""Ranges that outlast a step, written once more: int8 ones of QAT, and delayed ones of fp8.

A state begins empty. What a step shows becomes part of it when the step ends, never before.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.twin import arithmetic
from harness.twin.asked import Asked


def has_ranges(asked: Asked) -> bool:
    """Whether anything of the rounding outlasts a step."""
    if asked.method == "qat":
        moves = asked.qat_warmup > 0 or asked.qat_freeze < 1
        return bool(moves or asked.qat_activations == "tensor" or asked.qat_ranges == "learned")
    return bool(asked.precision == "fp8" and asked.fp8_scaling == "delayed")


def attach_ranges(model: nn.Module, asked: Asked) -> list[Any]:
    """Let the linear layers of the decoder blocks round by states of their own, and return these.

    Args:
        model: the twin; with learnt ranges it gets the parameters of the run, by the same names.
        asked: the settings.
    """
    states: list[Any] = []
    for _, layer in arithmetic.rounded_linears(model):
        state = _Int8Ranges(layer, asked) if asked.method == "qat" else _Fp8Peaks(asked)
        vars(layer)["forward"] = types.MethodType(_forward_by(state), layer)
        states.append(state)
    return states


def _forward_by(state: Any) -> Callable[[Any, Tensor], Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        y: Tensor = state.product(x, self.weight)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    return forward


class Moments:
    """The states of all layers after each step of a replay, to go back to."""

    def __init__(self, states: Sequence[Any], total: int) -> None:
        self._states, self._total = states, total
        self._held: list[list[dict[str, Any]]] = []
        self._hold()

    def begin(self, step: int) -> None:
        """Prepare for a step, counted from 0."""
        for state in self._states:
            state.begin(step / self._total)

    def end(self) -> None:
        """Take up what the step has shown."""
        for state in self._states:
            state.end()
        self._hold()

    def go_to(self, steps: int) -> None:
        """Be as after so many steps, as an evaluation then finds it."""
        if not self._states:
            return
        for state, held in zip(self._states, self._held[steps], strict=True):
            state.held = deepcopy(held)

    def _hold(self) -> None:
        self._held.append([deepcopy(state.held) for state in self._states])


class _Int8Ranges:
    """The ranges of one layer under QAT."""

    def __init__(self, layer: nn.Linear, asked: Asked) -> None:
        self._asked, self._layer = asked, layer
        self._learns = asked.qat_ranges == "learned"
        self._shares = asked.qat_activations == "tensor"
        self._seen = 0.0
        self.held: dict[str, Any] = {"input": 0.0, "weight": None, "rounds": True, "stands": False}
        self._part = nn.Module()
        if self._learns:
            self._part.weight_stretch = nn.Parameter(torch.zeros(layer.out_features, 1))
            if self._shares:
                self._part.input_stretch = nn.Parameter(torch.zeros(1, 1))
            layer.add_module("ranges", self._part)

    def begin(self, share: float) -> None:
        held = self.held
        held["rounds"] = share >= self._asked.qat_warmup
        held["stands"] = self._asked.qat_freeze < 1 and share >= self._asked.qat_freeze
        fixes = held["stands"] or (self._learns and held["rounds"])
        if fixes and held["weight"] is None:
            weight = self._layer.weight.detach().float()
            held["weight"] = weight.abs().amax(dim=1, keepdim=True)

    def end(self) -> None:
        old, seen, self._seen = self.held["input"], self._seen, 0.0
        if not self._shares or not seen:
            return
        keeps = self.held["stands"] or (self._learns and self.held["rounds"])
        share = self._asked.qat_momentum
        if not old:
            self.held["input"] = seen
        elif not keeps:
            self.held["input"] = share * old + (1 - share) * seen

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self._seen = max(self._seen, float(x.detach().abs().max()))
        if not self.held["rounds"]:
            return functional.linear(x, weight)
        kind = arithmetic.type_of(x)
        with torch.autocast(x.device.type, enabled=False):
            a, b = self._input(x), self._weight(weight)
            return (a @ b.t()).to(kind)

    def _input(self, x: Tensor) -> Tensor:
        if not self._shares:
            return arithmetic.on_int8_grid(x)
        peak = self.held["input"] or float(x.detach().abs().max())
        return self._on_grid(x, torch.full((1, 1), peak), "input_stretch")

    def _weight(self, weight: Tensor) -> Tensor:
        if self.held["weight"] is None:
            return arithmetic.on_int8_grid(weight)
        return self._on_grid(weight, self.held["weight"], "weight_stretch")

    def _on_grid(self, values: Tensor, peak: Tensor, name: str) -> Tensor:
        """Round to a given grid; gradients are those of Esser et al. (1902.08153), equation 3."""
        scale = torch.where(peak == 0, torch.ones_like(peak), peak / 127)
        if self._learns:
            stretch = getattr(self._part, name)
            scale = scale * (stretch.detach() if self.held["stands"] else stretch).exp()
            factor = (values.shape[-1] * 127) ** -0.5
            scale = (scale * factor) + (scale * (1 - factor)).detach()
        reached = values.float() / scale
        level = reached.detach().round()
        passed = reached + (level - reached).detach()
        return torch.where(level.abs() <= 127, passed, level.clamp(-127, 127)) * scale


class _Fp8Peaks:
    """The largest values of the last steps of one layer in fp8, of input, weight and gradient."""

    def __init__(self, asked: Asked) -> None:
        self._window = int(asked.fp8_window)
        self._seen = {"input": 0.0, "weight": 0.0, "gradient": 0.0}
        self.held: dict[str, Any] = {name: [] for name in self._seen}

    def begin(self, share: float) -> None:
        del share

    def end(self) -> None:
        for name, seen in self._seen.items():
            if seen:
                self.held[name] = [seen, *self.held[name]][: self._window]
            self._seen[name] = 0.0

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        notes = torch.is_grad_enabled()

        def peak_of(name: str, tensor: Tensor) -> Tensor:
            own = float(tensor.detach().float().abs().max())
            if notes:
                self._seen[name] = max(self._seen[name], own)
            return torch.tensor(max(self.held[name]) if self.held[name] else own)

        return arithmetic.fp8_product(x, weight, peak_of)
