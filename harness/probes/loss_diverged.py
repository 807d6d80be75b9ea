"""The recorded loss ends well above where it was: the run diverged.

What it does: compares the last quarter of the logged losses with the first, and with the lowest
stretch in between, beyond what the noise of the series explains.

Why it is bad: the weights that are saved last are worse than earlier ones, often worse than those
before training; a loss above ln V means a model that is confidently wrong everywhere (FM41, FM61).

Example: the loss falls from 2.1 to 1.4, jumps to 9 at step 380 and ends at 12.6, above ln V =
11.9; the run exits with 0 and saves.

What to do: take the checkpoint before the rise. Train again with a lower learning rate, a longer
warmup and `max_grad_norm=1.0`.
"""

from __future__ import annotations

from harness.facts.records import TrainingLog
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe
from harness.weighing.record_series import (
    FEW_POINTS,
    end_of,
    has_diverged,
    lowest_of,
    require_points,
    show,
    start_of,
    write_number,
)


@probe("MPD906", modes=["FM41", "FM61"], severity=Severity.HIGH)
def check(training_log: TrainingLog) -> Finding | str:
    """Report a loss that ends above its beginning, or lost half of what it had gained."""
    log = training_log
    if log.is_generating:
        raise NotApplicable("the loss of generated answers says nothing of their worth")
    losses = require_points(log, "loss", FEW_POINTS)
    begin, end, lowest = start_of(losses), end_of(losses), lowest_of(losses)
    if not has_diverged(log):
        return f"the loss went from {begin:.4g} to {end:.4g}, its lowest stretch at {lowest:.4g}"
    chance = log.chance
    beyond = chance is not None and end > chance
    words = f", above ln V = {chance:.4g}" if beyond else ""
    evidence = [
        show(log, "loss", f"at the end at most about the lowest stretch, {lowest:.4g}"),
        Evidence(what="loss at the end", file=log.file, found=write_number(end)),
    ]
    if "grad_norm" in log.series:
        evidence.append(show(log, "grad_norm"))
    return Finding(
        message=f"the loss ended at {end:.4g}{words}, after {begin:.4g} at the beginning and "
        f"{lowest:.4g} at its best: the run diverged",
        evidence=tuple(evidence),
        cause="the learning rate is too high, gradients are not clipped, or half precision "
        "overflowed",
        remedy="use the checkpoint before the rise; train again with a lower learning rate, "
        "warmup, and max_grad_norm=1.0",
        severity=Severity.CRITICAL if beyond else None,
    )
