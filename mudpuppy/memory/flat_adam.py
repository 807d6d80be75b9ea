"""AdamW on the host for tensors that lie side by side: few calls of torch's fused kernel, not many.

torch's fused AdamW is the fastest on a CPU, and a call of it for every tensor costs a third more
than one for all (performance.md, section 3). Here tensors that follow each other in memory step as
one. That changes no bit: the kernel computes element by element, in vectors, and only what is left
over at the end of a tensor is computed one by one, maybe rounded otherwise. So tensors are joined
where nothing is left over, and step alone where something is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from mudpuppy.memory.arena import HostArena
from mudpuppy.memory.flat import Strip

WHOLE_VECTORS = 64
"""Elements to whose multiple nothing is left over, whatever the width of a vector (16 with
AVX-512), and wherever the kernel's threads divide the work (at cache lines)."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's states of a parameter, beside its count of steps."""
State = MutableMapping[Tensor, dict[str, Any]]
"""An optimizer's states, by weight."""


@dataclass(frozen=True)
class _Plan:
    """One step of a bucket, but for the settings."""

    places: tuple[int, int, tuple[int, ...]]
    """Addresses of weights and gradients, and the numbers of those that step."""
    firsts: list[int]
    """Number of the first weight of each run."""
    joined: list[list[Tensor]]
    """Weights, gradients and both moments, by run."""
    ages: dict[int, Tensor]
    """The steps that each weight has taken; counted on in place."""


class Bucket:
    """Weights on the host that step together, with their gradients and moments.

    Args:
        keys: the weights as the optimizer knows them: of one type, in one of its groups.
        weights: returns them as they lie in memory by then.
        slopes: returns their gradients as they lie in memory by then.
        arena: where host memory comes from.
        states: returns the optimizer's states; those of a weight are made at its first step, as
            AdamW does it.
    """

    def __init__(
        self,
        keys: Sequence[Tensor],
        weights: Callable[[], Strip],
        slopes: Callable[[], Strip],
        arena: HostArena,
        states: Callable[[], State],
    ) -> None:
        self.keys = list(keys)
        self.weights = weights
        self.slopes = slopes
        self._arena = arena
        self._states = states
        self._moments: dict[str, Strip] = {}
        self._plan: _Plan | None = None

    def _state(self, index: int) -> dict[str, Any]:
        return self._states()[self.keys[index]]

    def step(
        self, given: Sequence[bool], group: dict[str, Any], *, grad_scale: Tensor | None = None
    ) -> None:
        """Step every weight that has a gradient; the others stay, and do not age.

        Args:
            given: for each weight, whether there is a gradient of it among the slopes.
            group: the settings of the weights' group, as AdamW keeps them.
            grad_scale: what the gradients were multiplied with, if they still are.
        """
        chosen = [index for index, is_there in enumerate(given) if is_there]
        if not chosen:
            return
        self._make_states(chosen)
        plan = self._make_plan(chosen)
        beta1, beta2 = group["betas"]
        adamw(
            plan.joined[0],
            plan.joined[1],
            plan.joined[2],
            plan.joined[3],
            [],
            [plan.ages[first].clone() for first in plan.firsts],
            fused=True,
            grad_scale=grad_scale,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )
        for age in plan.ages.values():
            age += 1

    def _make_plan(self, chosen: Sequence[int]) -> _Plan:
        """Return what steps together; that of the step before, as long as nothing has changed."""
        weights, slopes = self.weights(), self.slopes()
        places = weights.buffer.data_ptr(), slopes.buffer.data_ptr(), tuple(chosen)
        if self._plan is not None and self._plan.places == places:
            return self._plan
        ages = {index: self._state(index)["step"] for index in chosen}
        runs = list(self._runs(chosen, weights))
        strips = (weights, slopes, *(self._moments[name] for name in MOMENTS))
        plan = _Plan(
            places=places,
            firsts=[first for first, _ in runs],
            joined=[[strip.joined(*run) for run in runs] for strip in strips],
            ages=ages,
        )
        # what steps in every step keeps one age, and one plan; else ages may come to differ
        self._plan = plan if len(chosen) == len(self.keys) else None
        return plan

    def take_states(self) -> None:
        """Put states that were loaded, and lie anywhere, side by side."""
        loaded = {
            index: dict(self._state(index)) for index in range(len(self.keys)) if self._state(index)
        }
        for index in loaded:
            self._state(index).clear()
        self._plan = None
        self._make_states(list(loaded))
        for index, values in loaded.items():
            for name, value in values.items():
                self._state(index)[name].copy_(value)

    def _make_states(self, chosen: Sequence[int]) -> None:
        """Make the states of weights that step for the first time."""
        new = [index for index in chosen if not self._state(index)]
        if not new:
            return
        self._plan = None
        if not self._moments:
            places = self.weights().places
            self._moments = {name: Strip(places, self._arena) for name in MOMENTS}
        for index in new:
            own = {name: strip.own(index).zero_() for name, strip in self._moments.items()}
            age = torch.zeros((), dtype=torch.float32)
            self._state(index).update({"step": age, **own})

    def _runs(self, chosen: Sequence[int], weights: Strip) -> Iterator[tuple[int, int]]:
        """Yield first and last of what may step as one: neighbours of one age."""
        ages = {index: float(self._state(index)["step"]) for index in chosen}
        whole = {index: not self.keys[index].numel() % WHOLE_VECTORS for index in chosen}
        first = last = chosen[0]
        for index in chosen[1:]:
            is_next = index == last + 1 and weights.follows(index) and ages[index] == ages[last]
            if not (is_next and whole[index] and whole[last]):
                yield first, last
                first = index
            last = index
        yield first, last
