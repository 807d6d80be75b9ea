"""The recorded learning rate is 0 in every step.

What it does: reads the logged learning rates. A schedule begins and ends at 0, so that single zeros
are nothing; three and more without any other value are.

Why it is bad: no weight moves, and the adapter that is saved is the one that was made (FM08).

Example: `warmup_steps` is larger than `max_steps` and the rate is rounded to 0, or a DeepSpeed
configuration brings a scheduler of its own.

What to do: print `trainer.optimizer.param_groups[0]["lr"]` in a callback; check `learning_rate`,
warmup and the number of steps.
"""

from __future__ import annotations

from harness.facts.records import TrainingLog
from harness.findings import Finding, Severity
from harness.registry import probe
from harness.weighing.record_series import require_points, show

LEAST = 3


@probe("MPD921", modes=["FM08"], severity=Severity.CRITICAL)
def check(training_log: TrainingLog) -> Finding | str:
    """Report a learning rate that was never above 0."""
    rates = require_points(training_log, "learning_rate", LEAST)
    if max(rates) > 0:
        return f"the learning rate reached {max(rates):.3g}"
    return Finding(
        message=f"the learning rate is 0 at all {len(rates)} logged steps: nothing was trained",
        evidence=(show(training_log, "learning_rate", "above 0"),),
        cause="learning_rate is 0, or the schedule never leaves its beginning",
        remedy="check learning_rate, warmup_steps and max_steps, and the scheduler of DeepSpeed",
    )
