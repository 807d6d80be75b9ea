"""Answers that a run generates have come to hit the length limit, nearly all of them.

What it does: compares `completions/clipped_ratio` at the beginning and at the end of a GRPO or RLOO
run. A share that was high from the first step on is only noted: the limit may simply be short.

Why it is bad: an answer that is cut is judged without its end, mostly as wrong; the policy that
learns from it no longer ends its answers (FM57, FM01).

Example: clipped_ratio climbs from 0.05 to 1.0 within 60 steps while the mean length reaches
max_completion_length.

What to do: take an earlier checkpoint. Lower the learning rate, reward the end of an answer, mask
cut answers (`mask_truncated_completions=True`), or raise max_completion_length.
"""

from __future__ import annotations

from harness.facts.records import TrainingLog
from harness.findings import Finding, Severity
from harness.registry import NotApplicable, probe
from harness.weighing.record_series import end_of, require_points, show, start_of

NAME = "completions/clipped_ratio"
HIGH, LOW = 0.95, 0.7
"""Share of cut answers at the end, and below which a run began otherwise."""
REAL_RUN = 50
"""Steps from which a limit that is too short is worth a note."""


@probe("MPD914", modes=["FM57", "FM01"], severity=Severity.HIGH)
def check(training_log: TrainingLog) -> Finding | str:
    """Report a share of cut answers that climbed to nearly all."""
    log = training_log
    if not log.is_generating:
        raise NotApplicable("the run does not train on generated answers")
    shares = require_points(log, NAME)
    begin, end = start_of(shares), end_of(shares)
    climbed = begin < LOW and end > HIGH
    is_long = log.points(NAME)[-1].step >= REAL_RUN
    if not climbed and not (end > HIGH and is_long):
        return f"{end:.0%} of the generated answers hit the length limit at the end"
    names = (NAME, "completions/mean_length", "reward")
    return Finding(
        message=f"{end:.0%} of the generated answers hit the length limit at the end, after "
        f"{begin:.0%} at the beginning",
        evidence=tuple(show(log, name) for name in names if log.series.get(name)),
        cause="the policy unlearnt to end its answers"
        if climbed
        else "max_completion_length is short for this model, or it never learnt to end",
        remedy="use an earlier checkpoint; mask cut answers and reward the end of an answer"
        if climbed
        else "raise max_completion_length, or train the end of answers first",
        severity=None if climbed else Severity.NOTE,
    )
