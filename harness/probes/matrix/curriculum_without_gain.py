"""A curriculum that ends no better than it began.

What it does: compares accuracy and voice of all answers before the first stage and after the last.

Why it is bad: hours of training that a report calls finished and that taught nothing (FM66, FM08).

Example: accuracy 0.03 before and after six topics, all of them kept.

What to do: look at the stages in `report.md`: which of them changed nothing, and by which loss.
"""

from __future__ import annotations

from harness.facts.curriculum import CurriculumRun
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD756", modes=("FM66", "FM08"), severity=Severity.CRITICAL)
def check(curriculum: CurriculumRun) -> Finding | str:
    """Fail unless accuracy and voice have risen; where something is planted they need not."""
    if curriculum.planted:
        return "something was planted: nothing has to be learnt"
    measured = {
        "accuracy": (curriculum.accuracy_before, curriculum.accuracy_after),
        "voice": (curriculum.voice_before, curriculum.voice_after),
    }
    wrong = [
        Evidence(what=name, found=after, expected=f"more than {before}")
        for name, (before, after) in measured.items()
        if before is None or after is None or after <= before
    ]
    if not wrong:
        return "accuracy and voice have risen"
    return Finding(
        message=f"{wrong[0].what} is {wrong[0].found} at the end, expected {wrong[0].expected}",
        evidence=tuple(wrong),
        cause="stages that changed nothing, or that took from each other",
        remedy="raise max_steps or learning_rate in curriculum.yaml, or mix data of earlier topics",
    )
