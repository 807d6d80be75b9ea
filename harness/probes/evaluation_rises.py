"""The evaluation loss rises while the training loss falls: the run overfits.

What it does: finds the lowest evaluation, and asks whether the later ones lie above it by more than
15% and 0.1 nats, to the end, while the training loss went on falling. Where the trainer kept its
best weights, or the folder is that best checkpoint, the same course is no finding.

Why it is bad: the last weights know the training rows by heart and answer worse than earlier ones;
what the model knew before goes first (FM15).

Example: eval_loss 1.42, 1.31, 1.38, 1.61, 1.97 over five epochs; training loss 1.4 to 0.2.

What to do: use the checkpoint of the lowest evaluation. Train again with fewer epochs, a lower
rank, or `load_best_model_at_end` and `EarlyStoppingCallback`.
"""

from __future__ import annotations

from harness.facts.records import Point, TrainingLog
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe
from harness.weighing.record_series import noise_of, require_points, show

FEW, RISE_OF_FEW = 4, 0.3
"""Evaluations below which a rise must be larger, and how large."""
RISE, NATS = 0.15, 0.1
"""Relative and absolute rise of the evaluation loss."""


@probe("MPD908", modes=["FM15"], severity=Severity.MEDIUM)
def check(training_log: TrainingLog) -> Finding | str:
    """Report evaluations that rise to the end while training losses fall."""
    log = training_log
    if log.is_generating:
        raise NotApplicable("the loss of generated answers says nothing of their worth")
    require_points(log, "eval_loss", 3)
    points = [point for point in log.points("eval_loss") if abs(point.value) < 1e9]
    if len(points) < 3:
        raise Missing("evaluation losses of such a size cannot be compared")
    best = min(points, key=lambda point: point.value)
    later = [point for point in points if point.step > best.step]
    if not later or not _rises(points, best, later):
        return f"eval_loss ended at {points[-1].value:.4g}; its lowest was {best.value:.4g}"
    if not _falls(log, best, later):
        raise Missing("the evaluation loss rises, and the training loss does not fall meanwhile")
    if log.best_place and log.best_place == f"checkpoint-{best.step}":
        return f"eval_loss rises after step {best.step}, and the weights of that step were kept"
    worse = points[-1].value > points[0].value
    return Finding(
        message=f"eval_loss rose from {best.value:.4g} at step {best.step} to "
        f"{points[-1].value:.4g} at step {points[-1].step} while the training loss fell: the "
        "run overfits",
        evidence=(
            show(log, "eval_loss", f"about {best.value:.4g} at the end"),
            show(log, "loss"),
            Evidence(what="step of the lowest evaluation", file=log.file, found=best.step),
        ),
        cause="too many epochs, too high a rank or learning rate for so few rows",
        remedy=f"use the checkpoint of step {best.step}; train again with fewer epochs, or with "
        "load_best_model_at_end and early stopping",
        severity=Severity.HIGH if worse else None,
    )


def _rises(points: list[Point], best: Point, later: list[Point]) -> bool:
    """Whether the last evaluation, and the later half about it, lie above the best one."""
    share = RISE_OF_FEW if len(points) < FEW else RISE
    last = points[-1].value
    bound = max(share * abs(best.value), NATS, 3 * noise_of([p.value for p in points]) / 2)
    half = later[len(later) // 2 :]
    return last - best.value > bound and all(p.value - best.value > bound / 2 for p in half)


def _falls(log: TrainingLog, best: Point, later: list[Point]) -> bool:
    """Whether the training loss is lower at the end than about the best evaluation."""
    losses = [point for point in log.points("loss") if abs(point.value) < 1e9]
    near = [p.value for p in losses if p.step <= best.step][-3:]
    last = [p.value for p in losses if best.step < p.step <= later[-1].step][-3:]
    if not near or not last:
        return False
    return sum(last) / len(last) < sum(near) / len(near)
