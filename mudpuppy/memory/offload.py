"""Optimizers on the host: AdamW's states and master weights live there, and step there.

`--zero-offload` (ZeRO-Offload, Ren et al. 2021): gradients stay on the device while they
accumulate, are unscaled and clipped there, come over bucket by bucket when a step is taken, and the
new weights go back while the next bucket steps. accelerate offers this inside FSDP only, and
torchao's class knows neither clipping nor accumulation.

`--stream`: the layers and their gradients are on the host already (`mudpuppy.memory.streaming`),
and nothing of them is copied; what is in no layer is offloaded. A step of all gradients clipped to
one norm cannot begin before the last gradient is there, which is that of the first layer. So the
layers step in the order in which the next forward pass wants them, on a thread of their own, and
the pass waits for each layer alone: the step of a layer runs beside the device's work on those
before it. Where nothing is clipped (`--max-grad-norm 0`, and no loss scale), a layer steps as soon
as its own gradients are there, while backward goes on.

Both take the weights to the same bits as torch's fused AdamW on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer

from mudpuppy.memory.arena import Copy, HostArena, Mark, make_arena, size_of
from mudpuppy.memory.flat import FlatLayer, Strip, plan_places
from mudpuppy.memory.flat_adam import Bucket, State
from mudpuppy.memory.streaming import LayerStream

BUCKET_BYTES = 64 << 20
"""Weights that step together: enough that copies and steps of two buckets overlap, and few enough
that the first step need not wait long for its gradients."""
_OF_THE_HOST = ("params", "fused", "foreach")
"""What the groups of the host have of their own."""


@dataclass(kw_only=True)
class OffloadLedger:
    """What an offloaded optimizer moved."""

    steps: int = 0
    """Steps taken."""
    gradient_bytes: int = 0
    """Gradients brought to the host by the optimizer, in bytes."""
    weight_bytes: int = 0
    """Weights brought back to the device, in bytes."""


class _Visiting:
    """Parameters that live on the device; their masters are here, side by side."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        group: int,
        arena: HostArena,
        states: Callable[[], State],
    ) -> None:
        self.parameters = list(parameters)
        self.group = group
        places = plan_places(self.parameters)
        masters, slopes = Strip(places, arena), Strip(places, arena)
        self.masters = [masters.own(index) for index in range(len(places))]
        self.slopes = [slopes.own(index) for index in range(len(places))]
        self.bucket = Bucket(self.masters, lambda: masters, lambda: slopes, arena, states)
        self.take_weights()

    @torch.no_grad()
    def take_weights(self) -> None:
        """Take the masters from the parameters."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.copy_(parameter)

    def gradients(self) -> list[Copy]:
        """Return the copies that bring the gradients here."""
        pairs = zip(self.parameters, self.slopes, strict=True)
        return [(p.grad, slope) for p, slope in pairs if p.grad is not None]

    def weights(self) -> list[Copy]:
        """Return the copies that take what stepped back."""
        pairs = zip(self.parameters, self.masters, strict=True)
        return [(master, p) for p, master in pairs if p.grad is not None]


class OffloadedAdamW(torch.optim.Optimizer):
    """AdamW on the host for parameters on any device.

    On a CPU the copies are made all the same, so that what a test counts is what a GPU would move.

    Args:
        inner: the AdamW it stands for, before its first step; its groups and settings are taken.
        arena: the device; by default the one that the parameters are on.
        at_home: parameters whose weights are on the host anyway, and step where they are.
    """

    # This one takes the loss scale and the overflow flag, as the fused one would: GradScaler then
    # treats both alike, and the learning rate follows the same schedule.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        arena: HostArena | None = None,
        *,
        at_home: Iterable[Tensor] = (),
    ) -> None:
        self.ledger = OffloadLedger()
        groups = [{**group, "params": list(group["params"])} for group in inner.param_groups]
        super().__init__(groups, dict(inner.defaults))
        everything = [p for group in groups for p in group["params"]]
        devices = [p.device for p in everything if p.device.type != "cpu"]
        self._arena = arena or make_arena(devices[0] if devices else "cpu")
        hosts: dict[Tensor, Tensor] = {p: p for p in at_home}
        self._visiting = [
            _Visiting(parameters, number, self._arena, lambda: self._adam.state)
            for number, group in enumerate(groups)
            for parameters in _in_buckets([p for p in group["params"] if p not in hosts])
        ]
        for one in self._visiting:
            hosts.update(zip(one.parameters, one.masters, strict=True))
        settled = {"fused": True, "foreach": False}
        # torch's own keeps the states: what is saved is what a plain AdamW would save
        self._adam = torch.optim.AdamW(
            [
                {**group, "params": [hosts[p] for p in group["params"]], **settled}
                for group in groups
            ]
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Bring the gradients over, step, and bring the weights back."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._take_settings()
        overflow = getattr(self, "found_inf", None)
        if overflow is not None and bool(overflow):
            return loss  # nothing may change, as in the fused optimizer that this one stands for
        scale = getattr(self, "grad_scale", None)
        self._step_all(scale.cpu() if isinstance(scale, Tensor) else None)
        self.ledger.steps += 1
        return loss

    def _take_settings(self) -> None:
        """Take the settings of the groups, which a schedule changes."""
        for group, ours in zip(self.param_groups, self._adam.param_groups, strict=True):
            ours.update({k: v for k, v in group.items() if k not in _OF_THE_HOST})

    def _step_all(self, scale: Tensor | None) -> None:
        """Step what visits the host: every gradient sets out, and each bucket waits for its own."""
        arrivals = [self._arena.take(one.gradients()) for one in self._visiting]
        self.ledger.gradient_bytes += sum(
            size_of(source) for one in self._visiting for source, _ in one.gradients()
        )
        returns: list[Mark] = []
        for one, arrival in zip(self._visiting, arrivals, strict=True):
            arrival.wait()
            given = [p.grad is not None for p in one.parameters]
            one.bucket.step(given, self._adam.param_groups[one.group], grad_scale=scale)
            weights = one.weights()
            returns.append(self._arena.bring(weights, self._arena.mark()))
            self.ledger.weight_bytes += sum(size_of(source) for source, _ in weights)
        for mark in returns:
            mark.hold_computation()

    def state_dict(self) -> dict[str, Any]:
        """Return the host's states, in the form of a plain AdamW."""
        self._take_settings()  # the schedule has gone on since the last step
        return self._adam.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the states; they stay on the host. The weights are taken anew from the model."""
        self._adam.load_state_dict(state_dict)
        for group, ours in zip(self.param_groups, self._adam.param_groups, strict=True):
            group.update({k: v for k, v in ours.items() if k not in _OF_THE_HOST})
        for bucket in self._buckets():
            bucket.take_states()
        for one in self._visiting:
            one.take_weights()

    def _buckets(self) -> Iterator[Bucket]:
        for one in self._visiting:
            yield one.bucket

    @property
    def state_bytes(self) -> int:
        """Bytes that the states, and the masters of what is on the device, take on the host."""
        states = [t for state in self._adam.state.values() for t in state.values()]
        return sum(map(size_of, [*states, *(m for one in self._visiting for m in one.masters)]))


class StreamedAdamW(OffloadedAdamW):
    """AdamW for a model whose layers are streamed: a layer steps at a time, where it lies.

    Args:
        inner: the AdamW it stands for, before its first step.
        stream: the model's stream.
    """

    def __init__(self, inner: torch.optim.Optimizer, stream: LayerStream) -> None:
        self._stream = stream
        home = [p for flat in stream.flats for p in flat.trained.values()]
        super().__init__(inner, stream.arena, at_home=home)
        groups = {
            p: number for number, group in enumerate(self.param_groups) for p in group["params"]
        }
        self._layers = [list(self._make_parts(flat, groups)) for flat in stream.flats]
        self._early: set[int] = set()

    def _make_parts(
        self, flat: FlatLayer, groups: Mapping[Tensor, int]
    ) -> Iterator[tuple[int, list[str], Bucket]]:
        """Yield group, names and bucket of what steps together in a layer."""
        kinds: dict[tuple[int, torch.dtype], list[str]] = {}
        for name, parameter in flat.trained.items():
            if parameter in groups:
                kinds.setdefault((groups[parameter], parameter.dtype), []).append(name)
        for (group, _), names in kinds.items():
            keys = [flat.tensors[name] for name in names]
            lies, slopes = partial(flat.weights, names), partial(flat.slopes, names)
            yield group, names, Bucket(keys, lies, slopes, self._arena, lambda: self._adam.state)

    def step_early_when(self, is_last: Callable[[], bool]) -> None:
        """Let a layer step while backward goes on, from now on.

        Only for gradients that nothing more is done to: not clipped, not scaled, not averaged over
        processes.

        Args:
            is_last: says whether the backward pass under way is the last one before a step.
        """

        def step_layer(index: int, arrivals: Sequence[Mark]) -> None:
            # somebody who looks at the weights before the step must not find them stepped
            if is_last() and not _listeners(self, "pre"):
                self._take_settings()
                self._early.add(index)
                self._send(index, None, arrivals)

        self._stream.when_done = step_layer

    def _step_all(self, scale: Tensor | None) -> None:
        """Step what is in no layer, and send the layers on their way."""
        super()._step_all(scale)
        for index in range(len(self._layers)):
            if index not in self._early:
                self._send(index, scale)
        self._early.clear()
        if _listeners(self, "post"):
            self._stream.settle()

    def _send(self, index: int, scale: Tensor | None, arrivals: Sequence[Mark] = ()) -> None:
        """Let one layer step on the host, beside whatever the device does."""
        flat, works = self._stream.flats[index], []
        for group, names, bucket in self._layers[index]:
            given = []
            for name in names:
                gradient = flat.tensors[name].grad
                given.append(gradient is not None)
                if gradient is not None and not flat.is_slope(name, gradient):
                    flat.slope_of(name).copy_(gradient)  # somebody put another one in its place
            # copied: the schedule goes on before the layer has stepped
            settings = dict(self._adam.param_groups[group])
            works.append(partial(bucket.step, given, settings, grad_scale=scale))
        ledger = self._stream.ledger

        def step() -> None:
            for arrival in arrivals:
                arrival.wait()
            with torch.no_grad():
                for work in works:
                    work()
            ledger.record_step(index)

        flat.settle()
        flat.pending = self._stream.beside(step)

    def state_dict(self) -> dict[str, Any]:
        """Return the host's states, in the form of a plain AdamW, once the last step is done."""
        self._stream.settle()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the states; those of a layer lie side by side."""
        self._stream.settle()
        super().load_state_dict(state_dict)

    def _buckets(self) -> Iterator[Bucket]:
        yield from super()._buckets()
        for parts in self._layers:
            for _, _, bucket in parts:
                yield bucket


def _listeners(optimizer: torch.optim.Optimizer, when: str) -> bool:
    """Return whether somebody looks at every step, before (`pre`) or behind (`post`) it."""
    everywhere = getattr(torch_optimizer, f"_global_optimizer_{when}_hooks")
    return bool(everywhere or getattr(optimizer, f"_optimizer_step_{when}_hooks"))


def _in_buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the parameters in their order, as many of one type at a time as fill a bucket."""
    bucket: list[Tensor] = []
    for parameter in parameters:
        is_full = sum(map(size_of, bucket)) + size_of(parameter) > BUCKET_BYTES
        if bucket and (is_full or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
