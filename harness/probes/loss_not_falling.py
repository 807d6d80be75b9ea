"""The training loss is not finite, or does not fall.

What it does:
    Looks at the loss of every step: all finite, and the mean of the last third below the first.

Why it is bad:
    A loss of zero or NaN with a finished file is a run that taught nothing or ruined the model
    (FM09, FM41).

Example:
    All labels are -100: the loss is 0.0 from the first step and the model does not change.

What to do:
    Render one sample with its mask, then lower the learning rate.
"""

from __future__ import annotations

import math

from harness.findings import Evidence, Finding
from harness.observations import Observations
from harness.registry import Missing, probe

MIN_STEPS = 3


@probe("MPD704", modes=("FM09", "FM41"))
def check(observations: Observations) -> Finding | str:
    """Fail on a loss that is missing, zero, not finite or not lower at the end."""
    losses = observations.losses
    if observations.ending != "trained" or "gptq" in observations.expected_artefacts:
        raise Missing("the method has no training loss, or the run did not end")
    third = losses[-max(1, len(losses) // 3) :]
    is_finite = bool(losses) and all(math.isfinite(loss) for loss in losses)
    last = sum(third) / len(third) if is_finite else math.nan
    if is_finite and 0.0 < last < losses[0]:
        return f"the loss fell from {losses[0]:.4f} to {last:.4f} over {len(losses)} steps"
    if len(losses) < MIN_STEPS and is_finite and losses[0] > 0.0:
        raise Missing(f"only {len(losses)} steps: too few to see the loss fall")
    return Finding(
        message=f"the loss went from {losses[0]:.4f} to {last:.4f}" if losses else "no loss at all",
        evidence=(
            Evidence(
                what="training loss by step",
                file="steps.jsonl",
                found=[round(x, 4) if math.isfinite(x) else str(x) for x in losses[:10]],
                expected="finite, above 0, lower at the end than at the start",
            ),
        ),
        cause="the labels are all masked, the learning rate is too high, or the loss is not "
        "connected to the trained weights",
        remedy="look at the label mask of one sample, then lower the learning rate",
    )
