"""The recorded loss is the same number in every step.

What it does: compares the logged losses with each other. Five or more that are all equal, to the
last digit that was written, are no course of a training.

Why it is bad: batches differ, and so do weights after a step; a loss that does not tell them apart
is not computed from them, or the weights stay where they are (FM08, FM09).

Example: the optimizer was made before the adapter was attached and holds none of its parameters;
the loss is 2.3841 in all 400 steps on one repeated batch.

What to do: compare a trained weight before and after ten steps; then look at the learning rate and
at the parameters that the optimizer holds.
"""

from __future__ import annotations

from harness.facts.records import TrainingLog
from harness.findings import Finding, Severity
from harness.registry import NotApplicable, probe
from harness.weighing.record_series import require_points, show

LEAST = 5
"""Logged losses that are not equal by chance."""
SAME = 1e-6
"""Relative difference below which two losses are one."""


@probe("MPD903", modes=["FM08", "FM09"], severity=Severity.HIGH)
def check(training_log: TrainingLog) -> Finding | str:
    """Report a constant loss; of preferences and generated answers, other probes judge it."""
    log = training_log
    if not log.is_language:
        raise NotApplicable("the loss of preferences and generated answers may stay where it is")
    losses = require_points(log, "loss", LEAST)
    low, high = min(losses), max(losses)
    if high - low > SAME * abs(high) or high == 0.0:
        return f"the loss in {log.file} moved between {low:.4g} and {high:.4g}"
    return Finding(
        message=f"the loss is {high:.6g} at all {len(losses)} logged steps: nothing was learnt",
        evidence=(show(log, "loss", "numbers that differ from step to step"),),
        cause="the optimizer does not hold the weights that were to be trained, its learning rate "
        "is 0, or the loss does not depend on them",
        remedy="compare a trained weight before and after ten steps, and list the parameters of "
        "the optimizer",
    )
