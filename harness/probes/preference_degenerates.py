"""Preference training made the good answers less likely, and went on.

What it does: compares the first and the last quarter of `logps/chosen`, `rewards/chosen` and
`rewards/margins`. A chosen answer that loses a third of its log-likelihood and more, beyond the
noise of the batches, while the margin grows, is a finding; a small fall is what DPO does.

Why it is bad: the objective only sees the margin. It can grow by pushing both answers down, and the
model then says neither: answers rot, loop or never end (FM37).

Example: logps/chosen goes from -96 to -310 and rewards/chosen to -9 with `beta=0.01`, while
rewards/accuracies is a perfect 1.0.

What to do: take an earlier checkpoint. Raise beta, lower the learning rate, train one epoch, or add
the likelihood of the chosen answer to the loss (`loss_type=["sigmoid", "sft"]`, or ORPO).
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.facts.records import TrainingLog
from harness.findings import Finding, Severity
from harness.registry import NotApplicable, probe
from harness.weighing.record_series import (
    LEAST_POINTS,
    end_of,
    error_of,
    require_points,
    show,
    start_of,
)

SHARE, LARGE_SHARE = 0.33, 1.0
"""Fall of logps/chosen, relative to its beginning: a finding, and a severe one."""
LEAST = 5
LEAST_BETA = 0.008
"""The lowest beta in use is 0.01."""
REWARD = -5.0
"""`rewards/chosen` that is a finding where no logps are logged."""


@probe("MPD911", modes=["FM37"], severity=Severity.HIGH)
def check(training_log: TrainingLog) -> Finding | str:
    """Report chosen answers that became much less likely while the margin grew."""
    log = training_log
    if not log.is_preference:
        raise NotApplicable("the run does not train preferences")
    margins = require_points(log, "rewards/margins", LEAST)
    rewards = log.finite("rewards/chosen")
    grows = end_of(margins) > max(0.0, start_of(margins))
    likelihoods = log.finite("logps/chosen")
    if len(likelihoods) >= len(margins) // 2 and len(likelihoods) > 3:
        share = _share_lost(likelihoods)
    else:
        share = SHARE if len(rewards) > 3 and end_of(rewards) < REWARD else 0.0
    is_believable = _agrees(likelihoods, rewards) if likelihoods else True
    if not (grows and share >= SHARE and is_believable):
        return f"chosen answers lost {max(share, 0):.0%} of their log-likelihood"
    shown = [
        name
        for name in ("logps/chosen", "rewards/chosen", "rewards/margins", "loss")
        if log.series.get(name)
    ]
    values = likelihoods or rewards
    return Finding(
        message=f"{shown[0]} fell from {start_of(values):.4g} to {end_of(values):.4g} while the "
        "margin grew: the good answers became less likely",
        evidence=tuple(show(log, name) for name in shown),
        cause="beta is low or training long, and the objective only sees the margin",
        remedy="use an earlier checkpoint; raise beta, lower the learning rate, or add the loss of "
        "the chosen answer",
        severity=None if share >= LARGE_SHARE else Severity.MEDIUM,
    )


def _share_lost(values: Sequence[float]) -> float:
    """Return how much of its beginning a log-likelihood lost; 0 for what noise explains."""
    lost = start_of(values) - end_of(values)
    if lost <= 5 * error_of(values) or start_of(values) >= 0:
        return 0.0
    return lost / abs(start_of(values))


def _agrees(likelihoods: Sequence[float], rewards: Sequence[float]) -> bool:
    """Whether the reward fell with the likelihood, which also depends on the rows of a batch.

    The reward is beta times the difference to the reference, so that their quotient is beta.
    """
    if len(rewards) <= 3:
        return len(likelihoods) >= LEAST_POINTS
    lost = start_of(likelihoods) - end_of(likelihoods)
    return -end_of(rewards) >= LEAST_BETA * lost
