"""Advice: the learning rate is unusual for an adapter.

What it does: compares the highest logged learning rate of a LoRA run with what is usual: a widely
used guide tries 0.0001 to 0.001.

Why it is bad: it is advice, no fault: a rate above diverges on most models (FM41, FM61), one far
below leaves an adapter that changes nothing (FM51).

Example: 5e-3, a zero too few; or 2e-6, the rate of a full fine-tune.

What to do: train 100 steps each with 1e-4, 2e-4 and 5e-4, and compare the evaluation losses.
"""

from __future__ import annotations

from harness.facts.checkpoint import Adapter
from harness.facts.records import TrainingLog
from harness.findings import Finding, Severity
from harness.registry import NotApplicable, probe
from harness.weighing.record_series import require_points, show
from mudpuppy.tuning import LEARNING_RATES

HIGHEST, LOWEST = LEARNING_RATES[-1], LEARNING_RATES[0] / 10
REAL_RUN = 100
"""Optimizer steps from which a run is more than a trial."""


@probe("MPD943", modes=["FM51", "FM61"], severity=Severity.NOTE)
def check(training_log: TrainingLog, adapter: Adapter) -> Finding | str:
    """Note a rate outside of the usual."""
    log = training_log
    if not adapter.is_lora or not log.is_language:
        raise NotApplicable("the usual rates are those of LoRA on text")
    rates = require_points(log, "learning_rate", 3)
    if log.points("learning_rate")[-1].step < REAL_RUN:
        raise NotApplicable("a trial run: too few steps for advice")
    highest = max(rates)
    if highest <= 0 or LOWEST <= highest <= HIGHEST:
        return f"the learning rate reached {highest:.3g}"
    return Finding(
        message=f"the learning rate reached {highest:.3g}; {LOWEST:g} to {HIGHEST:g} is usual for "
        "LoRA",
        evidence=(show(log, "learning_rate", f"between {LOWEST:g} and {HIGHEST:g} at its peak"),),
        cause="a digit too many or too few, or the rate of a full fine-tune",
        remedy="train 100 steps each with 1e-4, 2e-4 and 5e-4, and compare",
    )
