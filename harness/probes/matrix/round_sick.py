"""A stage of a lifecycle left something sick, or the doctor missed what was planted.

What it does: has the doctor look at what every stage left, with the base of that stage: everything
must be healthy, but for the stages that were damaged on purpose, where it must find something.

Why it is bad: one sick stage spoils all that follow, and the loss of the next one falls as before:
an adapter on an adapter took 28 topics with it before anybody looked (FM17, FM36).

Example: SFT of rank 8, then DPO of rank 1 on the same model object.

What to do: `mudpuppy-doctor` on the folder of that stage, with `--base` of the stage before it.
"""

from __future__ import annotations

from harness.facts.lifecycle import Lifecycle
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD735", modes=("FM17", "FM36"), severity=Severity.CRITICAL)
def check(lifecycle: Lifecycle) -> Finding | str:
    """Fail at a stage that is not healthy, and at a planted one that the doctor calls so."""
    wrong = [one for one in lifecycle.stages if (one.verdict == "healthy") == one.planted]
    if lifecycle.stages and not wrong:
        planted = sum(one.planted for one in lifecycle.stages)
        return f"{len(lifecycle.stages)} stages as they have to be, {planted} sick on purpose"
    return Finding(
        message=f"{len(wrong)} of {len(lifecycle.stages)} stages are not as they have to be"
        + (f", first {wrong[0].name}: {wrong[0].verdict}" if wrong else ""),
        evidence=tuple(
            Evidence(
                what=one.name,
                found=[one.verdict, *one.findings],
                expected="sick" if one.planted else "healthy",
            )
            for one in wrong
        )
        or (Evidence(what="stages", found=0, expected="at least 1"),),
        cause="this stage, or what it was built upon",
        remedy="the doctor on its folder, with --base of the stage before",
    )
