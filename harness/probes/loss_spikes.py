"""The recorded loss has spikes from which it recovered.

What it does: holds every logged loss against the median of the ten around it, and counts those
above three times that and far beyond the noise.

Why it is bad: a spike is a step that threw the model back; a run with several is close to one that
does not recover (FM41).

Example: 1.2, 1.1, 7.8, 3.0, 1.3 at step 730, where one row of broken text was alone in its batch.

What to do: look at the rows of that step, lower the learning rate or beta2 (0.95), and clip at 1.0.
"""

from __future__ import annotations

from statistics import median

from harness.facts.records import Point, TrainingLog
from harness.findings import Finding, Severity
from harness.registry import Missing, NotApplicable, probe
from harness.weighing.record_series import has_diverged, noise_of, require_points, show

LEAST = 20
AROUND = 5
"""Points on each side that a loss is held against."""
TIMES, NATS, DEVIATIONS = 3.0, 2.0, 12.0


@probe("MPD926", modes=["FM41"], severity=Severity.NOTE)
def check(training_log: TrainingLog) -> Finding | str:
    """Note losses far above their neighbours."""
    log = training_log
    if not log.is_language:
        raise NotApplicable("the run has no loss per token")
    losses = require_points(log, "loss", LEAST)
    if has_diverged(log):
        raise Missing("the loss diverged, which another probe reports")
    bound = max(NATS, DEVIATIONS * noise_of(losses))
    points = [point for point in log.points("loss") if abs(point.value) < 1e30]
    spikes = [points[n] for n in range(AROUND, len(points)) if _is_spike(points, n, bound)]
    if not spikes:
        return f"no spike in {len(points)} logged losses"
    worst = max(spikes, key=lambda point: point.value)
    return Finding(
        message=f"the loss has {len(spikes)} spike{'s' * (len(spikes) > 1)}, the highest "
        f"{worst.value:.4g} at step {worst.step}",
        evidence=(show(log, "loss"),),
        cause="a batch of broken or very different text, or a learning rate close to too high",
        remedy="look at the rows of that step; lower the learning rate and clip gradients",
    )


def _is_spike(points: list[Point], n: int, bound: float) -> bool:
    around = [p.value for p in points[max(0, n - AROUND) : n] + points[n + 1 : n + 1 + AROUND]]
    middle = median(around)
    return 0 < TIMES * middle < points[n].value and points[n].value - middle > bound
