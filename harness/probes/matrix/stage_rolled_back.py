"""A stage of a curriculum was not kept.

What it does: lists the stages of `mud-puppy curriculum` that the gate rolled back, each with the
root cause that it named.

Why it is bad: what the stage should have taught is not in the model; and where every topic fails
for one reason, nobody has to wait for the last of them (FM17, FM66).

Example: `stacked-adapters` in the DPO stage of the first of 28 topics.

What to do: what the report of the run says under "Rolled back"; then run the same command again in
another folder.
"""

from __future__ import annotations

from harness.facts.curriculum import CurriculumRun
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD754", modes=("FM17", "FM66"), severity=Severity.CRITICAL)
def check(curriculum: CurriculumRun) -> Finding | str:
    """Fail where a stage was rolled back."""
    found = curriculum.rolled_back
    if curriculum.stages and not found:
        return f"all {len(curriculum.stages)} stages were kept"
    if not found:
        return Finding(
            message="no stage was trained",
            evidence=(Evidence(what="stages", found=0, expected="at least 1"),),
            cause="the run ended before its first stage",
            remedy="look at its output",
        )
    first = found[0]
    named = ", ".join(first.roots or first.codes)
    return Finding(
        message=f"{len(found)} of {len(curriculum.stages)} stages were rolled back, the first in "
        f"topic {first.number} ({first.kind}): {named}",
        evidence=tuple(
            Evidence(
                what=f"{one.topic}, {one.kind}",
                found=[*one.roots, *one.codes],
                expected="kept",
            )
            for one in found
        ),
        cause=first.message,
        remedy="mud-puppy curriculum report on the folder of the run",
    )
