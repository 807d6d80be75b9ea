"""Statistics of logged series that know about noise, for the probes of training records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from harness.facts.records import TrainingLog
from harness.findings import Evidence
from harness.registry import Missing, NotApplicable

LEAST_POINTS = 8
"""Logged points below which nothing is said of a course."""
ABOVE_START = (0.2, 0.3)
"""Share and nats by which the end of a loss exceeds its beginning when it diverged."""
FAR_ABOVE_START = (1.5, 1.0)
"""The same where fewer than `LEAST_POINTS` are logged."""
ABOVE_LOWEST = (0.5, 0.5)
"""The same for the lowest stretch of a run that ends below its beginning."""
FEW_POINTS = 4
"""Logged points below which not even a large change says anything."""
HALF = 0.5
"""Share of what was gained that is lost again."""
LARGEST_CHANCE = 13.5
"""ln of 730,000: no vocabulary in use is larger."""
WITHIN = 1.0
"""Nats above chance that a random model of some width begins with: logits with a deviation of 1.3
cost 0.8."""
SHOWN = 8
"""Numbers of a series that evidence shows."""


def require_points(log: TrainingLog, name: str, least: int = LEAST_POINTS) -> tuple[float, ...]:
    """Return the finite numbers of a series, by step.

    Raises:
        NotApplicable: the run logged no such number.
        Missing: it logged too few to say anything, or ends in NaN.
    """
    if name not in log.series:
        raise NotApplicable(f"{log.file} logs no {name}")
    if not math.isfinite(log.values(name)[-1]):
        raise Missing(f"{name} ends in no number, which another probe reports")
    found = log.finite(name)
    if len(found) < least:
        raise Missing(
            f"{log.file} logs {name} {len(found)} times, too few to judge its course; "
            "log more often (logging_steps)"
        )
    return found


def span(values: Sequence[float]) -> int:
    """Return how many points stand for the beginning, or the end: a quarter, three at least."""
    return max(3, len(values) // 4)


def start_of(values: Sequence[float]) -> float:
    """Return the median of the first quarter."""
    return median(values[: span(values)])


def end_of(values: Sequence[float]) -> float:
    """Return the median of the last quarter."""
    return median(values[-span(values) :])


def lowest_of(values: Sequence[float]) -> float:
    """Return the lowest median of any stretch as long as a quarter."""
    width = span(values)
    stretches = range(0, len(values) - width + 1, max(1, width // 4))
    return min(median(values[first : first + width]) for first in stretches)


def noise_of(values: Sequence[float]) -> float:
    """Return the standard deviation of one point about its course, unmoved by outliers.

    Second differences hold no slope; 1.4826 makes their median a deviation, and sqrt(6) that of one
    point (1, -2 and 1 are added up).
    """
    changes = [right - left for left, right in pairwise(values)]
    bends = [abs(right - left) for left, right in pairwise(changes)]
    return 1.4826 * median(bends) / math.sqrt(6) if bends else 0.0


def error_of(values: Sequence[float]) -> float:
    """Return the uncertainty of `start_of` or `end_of` (a median's is 1.25 that of a mean)."""
    return 1.25 * noise_of(values) / math.sqrt(span(values))


def show(log: TrainingLog, name: str, expected: str = "") -> Evidence:
    """Return a series as evidence: `SHOWN` numbers from its beginning to its end."""
    points = log.points(name)
    chosen = sorted({round(n * (len(points) - 1) / (SHOWN - 1)) for n in range(SHOWN)})
    steps = f"steps {points[0].step} to {points[-1].step}" if points else "no step"
    return Evidence(
        what=f"{name} at {steps}" + (f" ({len(chosen)} of {len(points)} points)"),
        file=log.file,
        found=[write_number(points[n].value) for n in chosen] if points else [],
        expected=expected or None,
    )


def write_number(value: float) -> float | str:
    """Return a number as JSON can hold it, rounded to what people read."""
    shown = float(f"{value:.5g}")  # the largest numbers are rounded beyond what a float holds
    return shown if math.isfinite(shown) else str(value)


def ends_higher(losses: Sequence[float]) -> bool:
    """Whether a loss ends well above its beginning, or lost half of what it had gained."""
    begin, end, lowest = start_of(losses), end_of(losses), lowest_of(losses)
    spare = 8 * error_of(losses)
    share, nats = ABOVE_START if len(losses) >= LEAST_POINTS else FAR_ABOVE_START
    if end - begin > max(share * abs(begin) + nats, spare):
        return True
    share, nats = ABOVE_LOWEST
    lost = end - lowest > max(HALF * (begin - lowest), spare, share * abs(lowest) + nats)
    return lost and len(losses) >= LEAST_POINTS


def has_diverged(log: TrainingLog) -> bool:
    """Whether the training loss of a run ends higher; no for one that says nothing.

    A run that is thrown out by its first steps has no beginning to compare with but its first
    loss; it counts where the end is worse than guessing.
    """
    losses = log.finite("loss")
    if log.is_generating or len(losses) < FEW_POINTS:
        return False
    bound = bound_of_chance(log)
    return ends_higher(losses) or losses[0] <= bound < end_of(losses)


def bound_of_chance(log: TrainingLog) -> float:
    """Return the loss above which a model is worse than one that guesses; infinite if unknown."""
    if not log.predicts_tokens:
        return math.inf
    chance = LARGEST_CHANCE if log.chance is None else log.chance
    return chance + WITHIN * (1 if len(log.finite("loss")) >= LEAST_POINTS else 2)
