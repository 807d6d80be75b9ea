"""The learning rate that was logged is not the one that the settings ask for.

What it does: compares the logged learning rates with `learning_rate` and `lr_scheduler_type` of the
model card or of mudpuppy.json: their highest value, and, where the plan is known, whether a
schedule that should fall stays, one that should stay falls, or a cosine is a line.

Why it is bad: a setting that is not passed on makes a run that cannot be repeated, and may train
with a tenth or the tenfold of the rate that was meant (FM58).

Example: the card says `lr_scheduler_type: cosine` and 0.0002; the log falls in a straight line from
0.00002, as a DeepSpeed configuration has it.

What to do: print `trainer.lr_scheduler` and the parameter groups; take the scheduler and optimizer
out of the DeepSpeed configuration, or set them to "auto".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.facts.records import Point, TrainingLog
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe
from harness.weighing.record_series import require_points, show

LEAST = 3
HIGHER, LOWER = 1.5, 0.5
"""Highest logged rate over the rate that was asked for."""
FALLING = ("linear", "cosine", "polynomial", "cosine_with_restarts")
COVERED = 0.6
"""Share of the plan that must be logged before its shape is judged."""
OTHER, OWN = 0.03, 0.06
"""Deviations, as shares of the peak, of the shape that is found and of the one asked for."""


@probe("MPD922", modes=["FM58"], severity=Severity.MEDIUM)
def check(training_log: TrainingLog) -> Finding | str:
    """Report another peak, or another shape, than was asked for."""
    log = training_log
    asked, kind = _number(log.asked.get("learning_rate")), _kind(log)
    if asked is None and not kind:
        raise NotApplicable("nothing says which learning rate was asked for")
    rates = require_points(log, "learning_rate", LEAST)
    said = _judge_peak(log, rates, asked) or _judge_shape(log, kind)
    if not said:
        return f"the learning rate follows {log.asked_in}, with a peak of {max(rates):.3g}"
    return Finding(
        message=said,
        evidence=(
            show(log, "learning_rate"),
            Evidence(
                what="asked for",
                file=log.asked_in,
                found=f"learning_rate {log.asked.get('learning_rate')}, schedule {kind or '-'}",
            ),
        ),
        cause="the setting is not passed on: another scheduler is in place, or the schedule counts "
        "other steps",
        remedy="print trainer.lr_scheduler and the optimizer's groups; in a DeepSpeed "
        'configuration set scheduler and optimizer to "auto"',
    )


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def _kind(log: TrainingLog) -> str:
    return str(log.asked.get("lr_scheduler_type") or "").rpartition(".")[2].lower()[:40]


def _judge_peak(log: TrainingLog, rates: Sequence[float], asked: float | None) -> str:
    peak = max(rates)
    if asked is None or peak <= 0:
        return ""
    still_warming = peak == rates[-1] and rates[-1] > rates[0]
    if peak > HIGHER * asked:
        return f"the learning rate reached {peak:.3g}, and {asked:.3g} was asked for"
    if peak < LOWER * asked and len(rates) >= 12 and not still_warming and _share(log) > COVERED:
        return f"the learning rate never passed {peak:.3g}, and {asked:.3g} was asked for"
    return ""


def _share(log: TrainingLog) -> float:
    """Return how much of the plan is logged."""
    points = log.points("learning_rate")
    return (points[-1].step - points[0].step) / (log.planned_steps or math.inf)


def _judge_shape(log: TrainingLog, kind: str) -> str:
    points = log.points("learning_rate")
    peak = max(points, key=lambda point: point.value)
    after = [point for point in points if point.step >= peak.step]
    if len(after) < 8 or peak.value <= 0:
        return ""
    low = min(point.value for point in after) / peak.value
    if kind in ("constant", "constant_with_warmup") and low < 0.95:
        return f"a constant rate was asked for, and it fell to {low:.0%} of its peak"
    if _share(log) < COVERED or log.planned_steps is None:
        return ""
    if kind in FALLING and low > 0.99:
        return f"the rate stayed at {peak.value:.3g}, and a {kind} schedule was asked for"
    for own, other in (("linear", "cosine"), ("cosine", "linear")):
        fits = _deviation(after, log.planned_steps, other) < OTHER
        if kind == own and fits and _deviation(after, log.planned_steps, own) > OWN:
            return f"the rate follows a {other} schedule, and {own} was asked for"
    return ""


def _deviation(points: Sequence[Point], end: int, shape: str) -> float:
    """Return the largest distance from a schedule that falls to 0 at `end`, over the peak."""
    first = points[0]
    length = max(1, end - first.step)
    worst = 0.0
    for point in points:
        done = min(1.0, (point.step - first.step) / length)
        wanted = 1 - done if shape == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        worst = max(worst, abs(point.value / first.value - wanted))
    return worst
