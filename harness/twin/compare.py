"""How the twin's gradients and weights compare with the run's, step by step."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.observations_twin import Deviation
from harness.twin.asked import Asked

NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
"""Names of parameters that weight decay spares, in small letters, as in transformers."""
BETAS, EPSILON, LEAST_RATE = (0.9, 0.999), 1e-8, 1e-7
"""AdamW's settings where nobody asks for others, and where transformers ends a polynomial."""
UPDATE_BOUND = 2e-4
"""Difference of AdamW's update that another order of its operations explains (measured: 2e-5)."""
UNIT = 2.0**-23
"""Relative rounding of a weight in fp32, by which its update is lost in it."""


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Return the L2 norm of all tensors together."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


def clip(gradients: Mapping[str, Tensor], limit: float) -> dict[str, Tensor]:
    """Return gradients scaled down to an L2 norm of at most `limit`; as they are where it is 0."""
    if not limit:
        return dict(gradients)
    factor = min(1.0, limit / (norm(gradients) + 1e-6))
    return {name: gradient * factor for name, gradient in gradients.items()}


def distance(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, least: float = 1e-12
) -> tuple[float, str]:
    """Return the norm of the difference over that of `wanted`, and the tensor that differs most.

    Args:
        found: tensors of the run.
        wanted: tensors of the twin.
        least: what the norm of `wanted` counts for at least.
    """
    off = {name: found[name].double() - wanted[name].double() for name in wanted if name in found}
    off |= {name: wanted[name].double() for name in wanted if name not in found}
    off |= {name: found[name].double() for name in found if name not in wanted}
    if not off:
        return 0.0, ""
    worst = max(off, key=lambda name: float(off[name].norm()))
    return norm(off) / max(norm(wanted), least, 1e-12), worst


class Optimizer:
    """AdamW and its schedule, written out (Loshchilov and Hutter 2019): no library is asked.

    w <- w (1 - rate decay);  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
    w <- w - rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    """

    def __init__(self, asked: Asked, total: int) -> None:
        self._asked = asked
        self._total = total
        self._turn = 0
        self._taken: dict[str, int] = {}
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        share = schedule(
            self._asked.lr_scheduler,
            self._turn,
            self._total,
            warmup=self._asked.warmup_steps,
            least=LEAST_RATE / self._asked.rate,
        )
        return self._asked.rate * share

    def skip(self) -> None:
        """Go on with the schedule where the step itself was left out."""
        self._turn += 1

    def update(
        self, before: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the weights, in fp64, after a step from `before` with the run's own gradients."""
        rate, (first, second) = self.rate, BETAS
        self._turn += 1
        after = {}
        for name, weight in before.items():
            w = weight.double()
            if name not in gradients:
                after[name] = w
                continue
            g = gradients[name].double()
            m, v = self._moments.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
            m, v = first * m + (1 - first) * g, second * v + (1 - second) * g * g
            self._moments[name] = m, v
            self._taken[name] = taken = self._taken.get(name, 0) + 1
            decay = 0.0 if NOT_DECAYED.search(name.lower()) else float(self._asked.weight_decay)
            spread = (v / (1 - second**taken)).sqrt() + EPSILON
            step = (m / (1 - first**taken)) / spread
            after[name] = w * (1 - rate * decay) - rate * step
        return after


def schedule(name: str, turn: int, total: int, *, warmup: int, least: float) -> float:
    """Return the share of the peak rate at a step.

    Args:
        name: the schedule.
        turn: steps that were taken before.
        total: all steps.
        warmup: steps over which the rate rises from 0.
        least: where a polynomial ends.
    """
    if turn < warmup:
        return turn / warmup
    progress = min(1.0, (turn - warmup) / max(1, total - warmup))
    if name == "linear":
        return 1.0 - progress
    if name in ("cosine", "cosine_with_restarts"):
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if name == "polynomial":
        return (1.0 - least) * (1.0 - progress) + least
    return 1.0


def compare_update(
    before: Mapping[str, Tensor], found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[float, float, str]:
    """Return how far the weights are off, the bound that rounding sets, and the worst tensor.

    Both are relative to the norm of the update.
    """
    updates = {name: wanted[name].double() - before[name].double() for name in wanted}
    taken = {name: found[name].double() - before[name].double() for name in found}
    off, worst = distance(taken, updates, least=UNIT * norm(before))
    lost = UNIT * norm(before) / max(norm(updates), UNIT * norm(before), 1e-12)
    return off, UPDATE_BOUND + lost, worst


def compare_settings(
    asked: Asked, groups: Sequence[Mapping[str, Any]], step: int
) -> list[Deviation]:
    """Return the settings of the optimizer that are not as asked."""
    found = []
    for group in groups:
        for name in group["names"]:
            wanted = 0.0 if NOT_DECAYED.search(name.lower()) else asked.weight_decay
            if not math.isclose(group["weight_decay"], wanted, rel_tol=1e-9):
                decay = group["weight_decay"]
                found.append(
                    Deviation(
                        what="weight decay", step=step, tensor=name, expected=wanted, found=decay
                    )
                )
                break
        seen = [*(group["betas"] or ()), group["eps"]]
        if seen != [*BETAS, EPSILON]:
            what = "AdamW's betas and epsilon"
            found.append(Deviation(what=what, step=step, expected=[*BETAS, EPSILON], found=seen))
    return found
