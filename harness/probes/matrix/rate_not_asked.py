"""The optimizer worked with other settings than those that were asked for.

What it does: reads the learning rate, weight decay, betas and epsilon that the optimizer used in
every step, and compares them with the schedule over the steps that the settings ask for.

Why it is bad: a schedule that is declared and not passed on, or a decay that is dropped, makes a
run that cannot be compared with any other (FM58).

Example: `--lr-scheduler cosine` is accepted, and the rate falls linearly.

What to do: follow the setting to the optimizer; the schedule needs the number of all steps.
"""

from __future__ import annotations

import math

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import probe
from harness.weighing.twin_evidence import as_evidence, require_twin

SAME = 1e-6
"""Relative difference of a learning rate that rounding explains."""


@probe("MPD724", modes=("FM58",), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when a step was taken with another rate, or with other settings of AdamW."""
    twin = require_twin(observations, "rate")
    wrong = [
        Evidence(
            what=f"learning rate of step {one.step}", found=list(one.rates), expected=one.asked_rate
        )
        for one in twin.steps
        if one.asked_rate is not None
        and not all(
            math.isclose(rate, one.asked_rate, rel_tol=SAME, abs_tol=1e-15) for rate in one.rates
        )
    ]
    wrong += [as_evidence(one) for one in twin.settings]
    if not wrong:
        return f"{len(twin.steps)} steps with the rate and the decay that were asked for"
    return Finding(
        message=f"{wrong[0].what}: found {wrong[0].found}, asked for {wrong[0].expected}",
        evidence=tuple(wrong[:8]),
        cause="the setting is not passed on, or the schedule counts other steps",
        remedy="follow the setting to the optimizer and its schedule",
    )
