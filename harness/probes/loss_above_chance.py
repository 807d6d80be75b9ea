"""The recorded loss begins above that of a model that guesses.

What it does: compares the first quarter of the logged losses with ln V, the loss of a model that
gives every token of the vocabulary the same chance.

Why it is bad: a model that guesses has no more to lose, so the number is no mean over tokens:
losses of accumulated batches are summed rather than averaged, and gradients with them, which is a
learning rate of N times what was asked (FM39). Or the labels belong to another vocabulary (FM11).

Example: with transformers 4.46 and `gradient_accumulation_steps=8` the loss starts at 17 for a
model that starts at 2.1 without.

A run that left its beginning in its first steps looks the same (FM41), unless its first loss was
logged.

What to do: compare one step of 1 x 8 rows with one of 8 x 1: loss and gradient norm must be equal.
Update transformers, or give `num_items_in_batch` to your own loss.
"""

from __future__ import annotations

from harness.facts.records import TrainingLog
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe
from harness.weighing.record_series import (
    LARGEST_CHANCE,
    bound_of_chance,
    has_diverged,
    require_points,
    show,
    start_of,
)


@probe("MPD904", modes=["FM39", "FM11", "FM41"], severity=Severity.HIGH)
def check(training_log: TrainingLog) -> Finding | str:
    """Report a first quarter of losses above chance."""
    log = training_log
    if not log.predicts_tokens:
        raise NotApplicable("the run is not known to have a loss per token")
    losses = require_points(log, "loss", 1)
    chance = log.chance
    begin = start_of(losses)
    if begin <= bound_of_chance(log):
        if chance is None:
            raise Missing(
                "the vocabulary is not known, and with it the loss of a model that "
                "guesses; pass --base PATH"
            )
        return f"the loss began at {begin:.3g}; guessing costs {chance:.3g}"
    if has_diverged(log):
        raise Missing("the loss rose further, which another probe reports")
    known = (
        f"ln V = {chance:.4g}"
        if chance is not None
        else f"ln V of any vocabulary ({LARGEST_CHANCE})"
    )
    times = _explain(log, begin, chance)
    return Finding(
        message=f"the loss began at {begin:.4g}, above {known}: it is no mean over tokens",
        evidence=(
            show(log, "loss", f"at most {known} at the beginning"),
            *times,
        ),
        cause="the losses of accumulated batches are summed, not averaged, or labels belong to "
        "another vocabulary",
        remedy="compare one step of 1 x N rows with one of N x 1; update transformers, or pass "
        "num_items_in_batch on to the loss",
    )


def _explain(log: TrainingLog, begin: float, chance: float | None) -> list[Evidence]:
    asked = log.asked.get("gradient_accumulation_steps")
    pieces = []
    if chance is not None:
        pieces.append(Evidence(what="first losses over ln V", found=round(begin / chance, 2)))
    if asked is not None:
        what = "gradient_accumulation_steps"
        pieces.append(Evidence(what=what, file=log.asked_in, found=str(asked)))
    return pieces
