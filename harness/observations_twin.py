"""What the twin found: a run once more in plain torch, compared step by step (standard library)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """One thing that is not as the twin has it."""

    what: str
    """What was compared."""
    step: int | None = None
    """Optimizer step, from 1."""
    expected: Any = None
    """The twin's value, or what the settings ask for."""
    found: Any = None
    """The run's value."""
    tensor: str | None = None
    """Tensor that it is about."""


@dataclass(frozen=True, kw_only=True)
class TwinStep:
    """One optimizer step of the run, and of the twin from the same weights."""

    step: int
    """Number of the step, from 1."""
    loss: float
    """Sum of what the trainer differentiated in this step."""
    twin_loss: float | None
    """The same, one sequence after the other, without padding and packing; None where it is random
    (dropout)."""
    logged_loss: float | None
    """What the step log says."""
    loss_size: float = 0.0
    """What the twin's loss is made of, added up: near 0 it may be a difference of large numbers."""
    norm: float | None = None
    """L2 norm of the gradient that reached the optimizer; None where the step was skipped."""
    twin_norm: float | None = None
    """That of the twin's gradient, clipped as asked."""
    logged_norm: float | None = None
    """Norm before clipping, as the step log says."""
    twin_full_norm: float | None = None
    """That of the twin's gradient."""
    gradient_off: float | None = None
    """Norm of the difference of the two gradients over that of the twin's."""
    gradient_tensor: str = ""
    """Tensor with the largest share of it."""
    rates: tuple[float, ...] = ()
    """Learning rates that the optimizer used."""
    asked_rate: float | None = None
    """Learning rate that the settings ask for at this step."""
    weights_off: float | None = None
    """Norm of the difference to AdamW's weights, from the run's gradients, over its update's."""
    weights_bound: float | None = None
    """Largest `weights_off` that rounding explains."""
    weights_tensor: str = ""
    """Tensor with the largest share of it."""
    skipped: bool = False
    """Whether the step was left out since gradients overflowed (fp16)."""


@dataclass(frozen=True, kw_only=True)
class TwinFacts:
    """Everything that the twin compared."""

    steps: tuple[TwinStep, ...] = ()
    """Every step that was replayed."""
    loss_bound: float = 0.0
    """Largest relative difference of a loss that the precision explains."""
    gradient_bound: float = 0.0
    """The same of a gradient."""
    rows: tuple[Deviation, ...] = ()
    """Rows that are not the dataset's, or not in their turn."""
    rows_seen: int = 0
    """Rows trained, with repetition."""
    settings: tuple[Deviation, ...] = ()
    """Settings of the optimizer that are not as asked."""
    tensors: tuple[Deviation, ...] = ()
    """Weights before the first step, between steps, after the last or in the file that are off."""
    evaluations: tuple[tuple[int, float, float], ...] = ()
    """Steps done, logged evaluation loss and the twin's."""
    best: tuple[Deviation, ...] = ()
    """Where the weights that were kept are not those of the best evaluation."""
    rewards: tuple[Deviation, ...] = ()
    """Groups, rewards and advantages that are not what the answers earn (grpo)."""
    merge: tuple[Deviation, ...] | None = None
    """Merged tensors that are not the fold of base and adapter; None without a merge."""
    resume: tuple[Deviation, ...] | None = None
    """What differs between the run and one that was killed and resumed; None if not tried."""
    unchecked: dict[str, str] = field(default_factory=dict)
    """Parts that could not be compared (loss, gradient, rows, ...), each with the reason."""
    seconds: float = 0.0
    """Time that the twin took."""
