"""What evidence says of a run that somebody's trainer logged: series of numbers by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PREFERENCE = ("rewards/chosen", "rewards/margins", "logps/chosen")
"""Series that trainers of preferences log (DPO, KTO, ORPO, CPO)."""
GENERATING = ("reward", "reward_std", "completions/mean_length", "completions/clipped_ratio")
"""Series that trainers on generated answers log (GRPO, RLOO, PPO)."""
SCORING = ("mean_reward", "max_reward")
"""Series that TRL's trainer of reward models logs."""

UNLEARNING = ("forget_nll",)
"""Series that are logged where rows are forgotten: the loss then falls as they become unlikely."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One logged number."""

    step: int
    """Optimizer steps finished."""
    value: float
    """The number; NaN and infinities as they were written."""


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """One record of a run."""

    file: str
    """Where it was read, relative to the subject."""
    series: Mapping[str, tuple[Point, ...]]
    """Points by name, such as `loss` and `rewards/margins`, in the order in which they were
    logged."""
    is_state: bool
    """Whether it is a trainer's own state, which a resumed run takes over, and no appended log."""
    place: int | None = None
    """N where the state lies in a folder `checkpoint-N`."""
    finished_steps: int | None = None
    """Optimizer steps that the trainer says it has finished."""
    planned_steps: int | None = None
    """Steps that were planned; None where nobody says."""
    planned_epochs: float | None = None
    """Epochs that were planned; None where nobody says."""
    epochs: float | None = None
    """Epochs of the training set that were finished."""
    best_place: str = ""
    """Name of the folder that the trainer holds for its best; empty when it keeps none."""
    can_stop_early: bool = False
    """Whether a callback was there that ends runs early, or somebody asked the run to stop."""
    samples: float | None = None
    """Rows of the training set, as far as the record tells."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the run was started with, by transformers' names, where they were written."""
    asked_in: str = ""
    """File that says so."""
    is_text: bool = False
    """Whether the model is known to predict tokens, and not scores, classes or vectors."""
    vocabulary: int | None = None
    """Rows of its vocabulary; None for other tasks or unknown."""

    def points(self, name: str) -> tuple[Point, ...]:
        """Return the points of a series by step; of two at one step, the later one."""
        latest = {point.step: point for point in self.series.get(name, ())}
        return tuple(latest[step] for step in sorted(latest))

    def values(self, name: str) -> tuple[float, ...]:
        """Return the numbers of a series by step."""
        return tuple(point.value for point in self.points(name))

    def finite(self, name: str) -> tuple[float, ...]:
        """Return the finite numbers of a series by step."""
        return tuple(value for value in self.values(name) if math.isfinite(value))

    @property
    def is_preference(self) -> bool:
        """Whether pairs or judged answers were trained on."""
        return any(name in self.series for name in PREFERENCE)

    @property
    def is_generating(self) -> bool:
        """Whether the run generated its own answers, so that its loss means little."""
        return not self.is_preference and any(name in self.series for name in GENERATING)

    @property
    def is_language(self) -> bool:
        """Whether the loss is that of the next token."""
        is_other = any(name in self.series for name in (*SCORING, *UNLEARNING))
        return not (self.is_preference or self.is_generating or is_other)

    @property
    def predicts_tokens(self) -> bool:
        """Whether the loss is known to be that of the next token, in nats."""
        return self.is_text and self.is_language

    @property
    def chance(self) -> float | None:
        """Loss of a model that guesses, in nats per token: ln of the vocabulary."""
        known = self.vocabulary is not None and self.vocabulary > 1 and self.is_language
        return math.log(self.vocabulary) if known and self.vocabulary else None
