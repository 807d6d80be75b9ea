"""A root cause that was planted into a curriculum was not named, or not at once.

What it does: where a root cause is planted, looks at what the gate named first, and in which topic.

Why it is bad: the report that this comes from trained 28 topics before anybody looked, and then
suspected the wrong thing three times (FM17, FM52, FM55).

Example: a corrupting merge that is told as a collapse of the voice, three topics later.

What to do: look at `harness/stage_gate.py`: which finding came first, and what root it has there.
"""

from __future__ import annotations

from harness.facts.curriculum import CurriculumRun
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD755", modes=("FM17", "FM52", "FM55"), severity=Severity.CRITICAL)
def check(curriculum: CurriculumRun) -> Finding | str:
    """Fail unless the planted root is the first that is named, in the first topic."""
    planted, found = curriculum.planted, curriculum.rolled_back
    if not planted:
        return "nothing was planted"
    first = found[0] if found else None
    if first is not None and first.number == 1 and first.roots[:1] == (planted,):
        return f"{planted} was named in the first topic, by {', '.join(first.codes)}"
    told = "nothing" if first is None else f"{first.roots[:1]} in topic {first.number}"
    return Finding(
        message=f"{planted} was planted, and the gate named {told}",
        evidence=(
            Evidence(
                what="root cause that was named first",
                found=None if first is None else list(first.roots or first.codes),
                expected=f"{planted}, in topic 1",
            ),
        ),
        cause="the gate takes it for something else, or does not look there",
        remedy="harness/stage_gate.py: ROOTS, and what its watcher sees",
    )
