"""How the twin's gradients and weights compare with the run's, step by step."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from harness.observations_twin import Deviation
from harness.twin.asked import Asked

NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
"""Names of parameters that weight decay spares, in small letters, as in transformers."""
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""AdamW's settings where nobody asks for others."""
UPDATE_BOUND = 2e-4
"""Difference of AdamW's update that another order of its operations explains (measured: 2e-5)."""
UNIT = 2.0**-23
"""Relative rounding of a weight in fp32, by which its update is lost in it."""


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Return the L2 norm of all tensors together."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


def clip(gradients: Mapping[str, Tensor], limit: float) -> dict[str, Tensor]:
    """Return gradients scaled down to an L2 norm of at most `limit`."""
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
    if not off:
        return 0.0, ""
    worst = max(off, key=lambda name: float(off[name].norm()))
    return norm(off) / max(norm(wanted), least, 1e-12), worst


class Optimizer:
    """Plain AdamW under the schedule that is asked for, on copies of the weights."""

    def __init__(self, asked: Asked, initial: Mapping[str, Tensor], total: int) -> None:
        self._copies = {name: nn.Parameter(w.float().clone()) for name, w in initial.items()}
        decayed = [p for n, p in self._copies.items() if not NOT_DECAYED.search(n.lower())]
        spared = [p for n, p in self._copies.items() if NOT_DECAYED.search(n.lower())]
        groups = [
            {"params": decayed, "weight_decay": asked.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=asked.rate,
            betas=BETAS,
            eps=EPSILON,
            foreach=True,
        )
        self._schedule: Any = transformers.get_scheduler(
            asked.lr_scheduler,
            self._adam,
            num_warmup_steps=asked.warmup_steps,
            num_training_steps=total,
        )

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._schedule.get_last_lr()[0])

    def skip(self) -> None:
        """Go on with the schedule where the step itself was left out."""
        self._schedule.step()

    @torch.no_grad()
    def update(
        self, before: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the weights after a step from `before` with the run's own gradients."""
        for name, parameter in self._copies.items():
            parameter.copy_(before[name])
            parameter.grad = gradients[name].float().clone() if name in gradients else None
        self._adam.step()
        self._schedule.step()
        return {name: parameter.detach().clone() for name, parameter in self._copies.items()}


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
        if tuple(group["betas"]) != BETAS or group["eps"] != EPSILON:
            seen = [*group["betas"], group["eps"]]
            what = "AdamW's betas and epsilon"
            found.append(Deviation(what=what, step=step, expected=[*BETAS, EPSILON], found=seen))
    return found
