"""The trainer's state contradicts itself, its plan or its folder.

What it does: compares `global_step` of trainer_state.json with `max_steps`, with the last logged
step, and with the N of the folder `checkpoint-N` that it lies in.

Why it is bad: a run that resumes from such a state stops at once without a step, or goes on with
the rate and the rows of another step (FM58).

Example: checkpoint-500 was copied over checkpoint-200; or `max_steps` was lowered to 400 for a
resumed run whose state stands at 500: it ends at once, and the save at the end looks like a result.

What to do: resume from a checkpoint below `max_steps`, with the plan that it was made with; never
move files between checkpoints.
"""

from __future__ import annotations

from harness.facts.records import TrainingLog
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe


@probe("MPD924", modes=["FM58"], severity=Severity.MEDIUM)
def check(training_log: TrainingLog) -> Finding | str:
    """Report numbers of steps that cannot be true together."""
    log = training_log
    if not log.is_state:
        raise NotApplicable(f"{log.file} is a log and no state that a run resumes from")
    done = log.finished_steps
    if done is None:
        raise Missing(f"{log.file} has no global_step")
    steps = [point.step for points in log.series.values() for point in points]
    found: list[tuple[str, float, str]] = []
    if log.planned_steps is not None and done > log.planned_steps:
        found.append(("max_steps", log.planned_steps, f"at most max_steps, {log.planned_steps}"))
    if log.place is not None and log.place != done:
        found.append(("the name of its folder", log.place, f"{log.place}, as its folder says"))
    if steps and max(steps) > done:
        found.append(("the last logged step", max(steps), f"{max(steps)}, which was logged"))
    if log.epochs is not None and log.planned_epochs and log.epochs > log.planned_epochs + 0.5:
        text = f"in at most {log.planned_epochs:g} epochs, and {log.epochs:.4g} are done"
        found.append(("num_train_epochs", log.planned_epochs, text))
    if not found:
        plan = f" of {log.planned_steps}" if log.planned_steps else ""
        return f"the state stands at step {done}{plan}"
    return Finding(
        message=f"{log.file} stands at step {done}, against "
        + ", ".join(f"{name} ({value:g})" for name, value, _ in found),
        evidence=tuple(
            Evidence(what="global_step", file=log.file, found=done, expected=expected)
            for _, _, expected in found
        ),
        cause="the run was resumed with a shorter plan, or files of another checkpoint were copied "
        "here",
        remedy="resume from a checkpoint below max_steps, with the plan that it was made with",
    )
