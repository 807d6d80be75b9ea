"""The method's objective is not finite, or does not fall.

What it does: compares what the method lowers (log-likelihood, preference margin, scores, judged
steps) on the same rows before and after training, and asks it to fall by more than two measurements
on the untouched model differ. Asks every step's loss to be finite, and above zero where the
method's cannot be zero (that of forgotten rows can); of generated answers, every step's reward to
be a number.

Why it is bad: a loss of zero or NaN with a finished file is a run that taught nothing or ruined the
model (FM09, FM41).

Example: all labels are -100: the loss is 0.0 from the first step and the model does not change.

What to do: render one sample with its mask, then lower the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe


@probe("MPD704", modes=("FM09", "FM41"), severity=Severity.CRITICAL)
def check(observations: Observations, expectation: Mapping[str, Any]) -> Finding | str:
    """Fail on a loss that is missing, zero, not finite, or not lower at the end."""
    losses = observations.losses
    if observations.ending != "trained" or "gptq" in observations.expected_artefacts:
        raise Missing("the method has no training loss, or the run did not end")
    if observations.rewards:
        return _check_rewards(observations)
    before, after, noise = (
        observations.loss_before,
        observations.loss_after,
        observations.loss_noise,
    )
    ascends = (expectation.get("config") or {}).get("unlearn") == "gradient-ascent"
    is_finite = bool(losses) and all(
        math.isfinite(loss) and (loss > 0.0 or ascends) for loss in losses
    )
    if is_finite and before is not None and after is not None and before - after > noise:
        return f"fell from {before:.4f} to {after:.4f} on the same rows (noise {noise:.1g})"
    if not is_finite:
        message = "the training loss is not a positive number at every step"
    else:
        message = f"on the same rows the objective went from {_show(before)} to {_show(after)}"
    return Finding(
        message=message,
        evidence=(
            Evidence(
                what="objective on the same rows before and after training",
                found=[_show(before), _show(after)],
                expected=f"lower by more than {noise:.1g}",
            ),
            Evidence(
                what="training loss by step",
                file="steps.jsonl",
                found=[_show(loss) for loss in losses[:10]],
                expected="finite and above 0",
            ),
        ),
        cause="the labels are all masked, the learning rate is too high, or the loss is not "
        "connected to the trained weights",
        remedy="look at the label mask of one sample, then lower the learning rate",
    )


def _check_rewards(observations: Observations) -> Finding | str:
    """Judge generated answers by their rewards: their loss is near 0 whatever they are worth."""
    rewards, losses = observations.rewards, observations.losses
    is_known = all(one is not None and math.isfinite(one) for one in (*rewards, *losses))
    if is_known:
        return f"rewards and losses of {len(rewards)} steps are finite"
    return Finding(
        message="a step has no finite reward or loss",
        evidence=(
            Evidence(
                what="reward by step",
                file="steps.jsonl",
                found=[_show(one) for one in rewards[:10]],
                expected="finite",
            ),
        ),
        cause="the reward function returned nothing, or the run diverged",
        remedy="call the reward function on one answer, then lower the learning rate",
    )


def _show(loss: float | None) -> str:
    return "not finite" if loss is None or not math.isfinite(loss) else f"{loss:.4f}"
