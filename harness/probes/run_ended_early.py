"""The run stopped before the steps that it had planned.

What it does: compares `global_step` with `max_steps` in the trainer_state.json beside a result. A
run that had a callback to end it early, or was asked to stop, is left alone.

Why it is bad: it is no fault by itself, but the learning rate never came down, and a run of another
length is what the settings describe (FM58).

Example: the process was stopped at step 640 of 2,000 and the model saved by hand.

What to do: resume from the newest checkpoint, or say in the model card how long the run was.
"""

from __future__ import annotations

from harness.facts.records import TrainingLog
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

NEARLY = 0.98
"""Share of the plan from which a run counts as complete."""


@probe("MPD925", modes=["FM58"], severity=Severity.NOTE)
def check(training_log: TrainingLog) -> Finding | str:
    """Note a final state below its plan."""
    log = training_log
    if not log.is_state or log.file != "trainer_state.json" or log.place is not None:
        raise NotApplicable("no final state of a trainer lies here")
    if not log.finished_steps or not log.planned_steps:
        raise NotApplicable("the state names no plan")
    if log.can_stop_early or log.finished_steps >= NEARLY * log.planned_steps:
        return f"{log.finished_steps} of {log.planned_steps} steps were taken"
    return Finding(
        message=f"the run stopped after {log.finished_steps} of {log.planned_steps} steps",
        evidence=(
            Evidence(
                what="global_step",
                file=log.file,
                found=log.finished_steps,
                expected=log.planned_steps,
            ),
        ),
        cause="it was interrupted, and saved as it was",
        remedy="resume from the newest checkpoint, or note the length of the run",
    )
