"""The recorded gradient norm exploded and stayed there.

What it does: compares the last quarter of the logged gradient norms with the first, and with what
no healthy run has at its end.

Why it is bad: clipping turns such gradients into steps of full size in a random direction; without
it, the weights blow up (FM61, FM41). The loss may still look ordinary when it is averaged.

Example: grad_norm goes from 1.7 to 3,300,000 while the loss passes ln V.

What to do: take the checkpoint before the rise, lower the learning rate, clip at 1.0, and look at
the norms of the weights (`mudpuppy-doctor FOLDER --base PATH`).
"""

from __future__ import annotations

from harness.facts.records import TrainingLog
from harness.findings import Finding, Severity
from harness.registry import Missing, probe
from harness.weighing.record_series import end_of, has_diverged, require_points, show, start_of

ABSURD = 1e5
"""Norm that no mean loss has at the end of a run."""
TIMES, LEAST = 100.0, 100.0
"""Growth, and the norm from which it counts."""


@probe("MPD907", modes=["FM61", "FM41"], severity=Severity.HIGH)
def check(training_log: TrainingLog) -> Finding | str:
    """Report norms that ended absurdly high, or a hundred times above the beginning."""
    log = training_log
    norms = require_points(log, "grad_norm", 4)
    if has_diverged(training_log):
        raise Missing("the loss diverged, which another probe reports")
    begin, end = start_of(norms), end_of(norms)
    grew = end > TIMES * begin and end > LEAST
    if not (grew or end > ABSURD):
        return f"the gradient norm went from {begin:.3g} to {end:.3g}"
    return Finding(
        message=f"the gradient norm ended at {end:.4g}, after {begin:.4g} at the beginning",
        evidence=(show(log, "grad_norm", "below 100 times the beginning"),),
        cause="the learning rate is too high, or half precision overflowed, and every clipped step "
        "goes in a random direction",
        remedy="use the checkpoint before the rise; train again with a lower learning rate and "
        "max_grad_norm=1.0",
    )
