"""The training loss is not finite, or does not fall.

What it does:
    Compares the loss of the same samples before and after training, so that the luck of batches
    does not count, and asks every step's loss to be finite and above zero.

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


@probe("MPD704", modes=("FM09", "FM41"))
def check(observations: Observations) -> Finding | str:
    """Fail on a loss that is missing, zero, not finite, or not lower at the end."""
    losses = observations.losses
    if observations.ending != "trained" or "gptq" in observations.expected_artefacts:
        raise Missing("the method has no training loss, or the run did not end")
    before, after = observations.loss_before, observations.loss_after
    is_finite = bool(losses) and all(math.isfinite(loss) and loss > 0.0 for loss in losses)
    if is_finite and before is not None and after is not None and after < before:
        return f"the loss of the same samples fell from {before:.4f} to {after:.4f}"
    if not is_finite:
        message = "the training loss is not a positive number at every step"
    else:
        message = f"the loss of the same samples went from {_show(before)} to {_show(after)}"
    return Finding(
        message=message,
        evidence=(
            Evidence(
                what="loss of the same samples before and after training",
                found=[_show(before), _show(after)],
                expected="lower after than before",
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


def _show(loss: float | None) -> str:
    return "not finite" if loss is None or not math.isfinite(loss) else f"{loss:.4f}"
