"""State of a layer that changes between the steps of a run and never inside one.

A forward pass may happen twice in one step (recomputed activations), in parts (accumulation) or in
several processes; whatever it sees is only noted. What was noted becomes state when the step ends,
so that all of these compute the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


class StepState(nn.Module, ABC):
    """What a layer knows of the steps before; put into it as a submodule.

    Args:
        num: how many peaks are noted.
        device: where they are kept.
    """

    noted: Tensor
    """(num,) float32: largest absolute values of this step; no buffer, since it dies with it."""

    def __init__(self, num: int, device: torch.device) -> None:
        super().__init__()
        vars(self)["noted"] = torch.zeros(num, dtype=torch.float32, device=device)

    @torch.no_grad()
    def note(self, place: int, peak: Tensor) -> None:
        """Remember the largest of what this step has shown of one of the peaks."""
        where = self.noted[place]
        # NaN is no largest value: it would stay for good, and the loss shows it anyway
        seen = peak.reshape(()).to(where.device, torch.float32).nan_to_num(0.0, 0.0, 0.0)
        where.copy_(torch.maximum(where, seen))

    def begin_step(self, share: float) -> None:
        """Prepare for a step that begins when `share` of the run is done."""

    @abstractmethod
    def end_step(self) -> None:
        """Take up what was noted."""


def step_states(model: nn.Module) -> list[StepState]:
    """Return the states of a model, in its order."""
    return [part for part in model.modules() if isinstance(part, StepState)]


@torch.no_grad()
def end_step(states: Sequence[StepState]) -> None:
    """Let every state take up what this step has shown, in all processes together."""
    if not states:
        return
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        sizes = [state.noted.numel() for state in states]
        every = torch.cat([state.noted for state in states])
        torch.distributed.all_reduce(every, torch.distributed.ReduceOp.MAX)
        for state, part in zip(states, torch.split(every, sizes), strict=True):
            state.noted.copy_(part)
    for state in states:
        state.end_step()
        state.noted.zero_()


class StepKeeper(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Tells the states of a model when a step begins and ends."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Tell how far the run is."""
        del args, control
        for one in step_states(model):
            one.begin_step(state.global_step / state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Take up what the step has shown; before the step's checkpoint is written."""
        del args, state, control
        end_step(step_states(model))

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Bring every state to the end of the run, wherever it was stopped."""
        del args, state, control
        for one in step_states(model):
            one.begin_step(1.0)
