"""The record jumps where a run was resumed: in its steps, its epochs, its rate or its loss.

What it does: looks for steps or epochs that go back in a trainer's state, a learning rate that
climbs again after it had fallen, and a loss that is far higher after a step log was taken up again
than before. Regular restarts of a cosine and overlapping steps of an appended log are fine.

Why it is bad: a scheduler or an optimizer that is made anew takes large steps with a model that was
nearly finished; an epoch that goes back trains the same rows again and leaves others out (FM58).

Example: resumed with twice the epochs, the rate jumps from 0.0 to 0.0001 at step 500 of 1,000, and
the loss from 1.1 to 1.9.

What to do: resume with the same `num_train_epochs`, batch size and number of processes, from a
checkpoint that holds scheduler.pt and optimizer.pt; to train longer, start a new run at a low rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from harness.facts.records import Point, TrainingLog
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe
from harness.weighing.record_series import noise_of, show, write_number

LEAST = 5
CLIMB = 0.1
"""Climb of the learning rate, as a share of its peak, that no rounding explains."""
RETURN = 0.8
"""Share of the peak that a restart comes back to."""
LOW, LOW_OF_FEW, FEW = 0.15, 0.3, 12
"""Share of the peak that a cosine has sunk to before it restarts; where few points are logged."""
FINE, FINE_FOR_ONE = 6, 4
"""Points of the shortest stretch that shows the shape of several restarts, and of one."""
UNSURE = 2.5
"""Logging intervals by which equal stretches may differ: each end falls between two points."""
NEAR = 5
"""Losses on each side of a seam that are compared."""


@probe("MPD923", modes=["FM58"], severity=Severity.MEDIUM)
def check(training_log: TrainingLog) -> Finding | str:
    """Report steps, epochs, rates or losses that jump."""
    log = training_log
    if not log.series.get("loss") and not log.series.get("learning_rate"):
        raise NotApplicable(f"{log.file} logs neither loss nor learning rate")
    found = [piece for piece in (_back(log), _epochs(log), _rate(log), _loss(log)) if piece]
    if not found:
        if len(log.points("learning_rate")) < LEAST:
            raise Missing(f"{log.file} holds too few steps to show where a run was resumed")
        return f"steps, epochs and learning rate in {log.file} go on without a jump"
    return Finding(
        message="; ".join(text for text, _ in found),
        evidence=tuple(piece for _, piece in found),
        cause="the run was resumed without its scheduler or optimizer, or with another plan",
        remedy="resume with the same epochs, batch size and processes, from a checkpoint with "
        "scheduler.pt and optimizer.pt",
    )


def _seams(points: Sequence[Point]) -> list[int]:
    """Return the places before which the step goes back."""
    return [n for n in range(1, len(points)) if points[n].step < points[n - 1].step]


def _back(log: TrainingLog) -> tuple[str, Evidence] | None:
    points = log.series.get("loss", ())
    seams = _seams(points)
    if not seams or not log.is_state:
        return None
    before, after = points[seams[0] - 1].step, points[seams[0]].step
    text = f"the step goes back from {before} to {after}"
    return text, Evidence(what="steps in a row", file=log.file, found=[before, after])


def _epochs(log: TrainingLog) -> tuple[str, Evidence] | None:
    points = log.points("epoch")
    for left, right in pairwise(points):
        # The summary at the end of a run, and an evaluation, stand at the step before.
        if right.step > left.step and right.value < left.value - 1e-3:
            text = f"the epoch goes back from {left.value:.4g} to {right.value:.4g}"
            at = [left.step, right.step]
            return text, Evidence(what="steps between which it does", file=log.file, found=at)
    return None


def _rate(log: TrainingLog) -> tuple[str, Evidence] | None:
    points = log.points("learning_rate")
    if len(points) < LEAST or log.asked.get("lr_scheduler_type") == "cosine_with_restarts":
        return None
    climbs = find_climbs(points)
    if not climbs or are_regular(climbs, points, log.planned_steps):
        return None
    left, right = points[climbs[0]], points[climbs[0] + 1]
    text = (
        f"the learning rate jumps from {left.value:.3g} to {right.value:.3g} between steps "
        f"{left.step} and {right.step}"
    )
    return text, show(log, "learning_rate", "no climb after the warmup")


def find_climbs(points: Sequence[Point]) -> list[int]:
    """Return the places after which a rate that had fallen climbs, one for each climb."""
    peak = max((point.value for point in points), default=0.0)
    found: list[int] = []
    fell = climbing = False
    for n in range(len(points) - 1):
        change = points[n + 1].value - points[n].value
        if change > CLIMB * peak and fell and not climbing:
            found.append(n)
            climbing = True
        elif change < -1e-12:
            fell, climbing = True, False
    return found


def are_regular(climbs: Sequence[int], points: Sequence[Point], planned: int | None) -> bool:
    """Whether climbs are restarts of a cosine: from near 0, after stretches of one length.

    Args:
        climbs: places in `points` after which the rate climbs.
        points: learning rates by step.
        planned: steps that were planned.
    """
    shortest = min(right - left for left, right in pairwise([-1, *climbs]))
    if shortest < (FINE if len(climbs) > 1 else FINE_FOR_ONE):
        return True  # logged too coarsely to tell a restart by its shape
    peak = max(point.value for point in points)
    few = len(points) < FEW
    low = LOW_OF_FEW if few else LOW
    if any(points[n].value > low * peak for n in climbs):
        return False
    steps = [points[n].step for n in climbs]
    warm = max(points[: climbs[0] + 1], key=lambda point: point.value).step
    ends = [*steps, planned or points[-1].step]
    lengths = [end - begin for begin, end in zip([warm, *steps], ends, strict=True)]
    if len(steps) > 1 and lengths[-1] < lengths[-2]:
        lengths.pop()  # the run may end within its last stretch
    if len(steps) == 1 and not few:
        top = max(point.value for point in points if point.step > steps[0])
        if top < RETURN * peak:
            return False
    interval = median(right.step - left.step for left, right in pairwise(points))
    return max(lengths) - min(lengths) <= UNSURE * interval


def _loss(log: TrainingLog) -> tuple[str, Evidence] | None:
    points = [point for point in log.series.get("loss", ()) if abs(point.value) < 1e9]
    noise = noise_of([point.value for point in points])
    for seam in _seams(points):
        before = [p.value for p in points[max(0, seam - NEAR) : seam]]
        after = [p.value for p in points[seam : seam + NEAR]]
        if min(len(before), len(after)) < 3:
            continue
        rise = median(after) - median(before)
        if rise > max(6 * noise, 0.3 * abs(median(before)), 0.2):
            text = f"the loss jumps from {median(before):.4g} to {median(after):.4g}"
            shown = [write_number(value) for value in (*before, *after)]
            what = f"losses before and after step {points[seam].step} was taken up again"
            return text, Evidence(what=what, file=log.file, found=shown)
    return None
