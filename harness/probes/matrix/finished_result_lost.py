"""A result that was finished, or steps that were saved, are lost after a fault.

What it does: disturbs a run at a chosen moment and goes on from what is left: artefacts whose
manifest was written before the fault must be there afterwards, bit for bit; the run must go on from
the newest complete checkpoint; and at the end everything must be there that was promised.

Why it is bad: hours of work are gone though they lay on the disk: an older checkpoint is taken, a
complete adapter is removed because its merge failed, a good folder is refused (FM43).

Example: a merge that runs out of disk space takes the finished adapter with it.

What to do: look at the recovery's output in the cell's log: what did it remove, and where did it go
on?
"""

from __future__ import annotations

from harness.facts.faults import Fault
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD730", modes=("FM43",), severity=Severity.CRITICAL)
def check(fault: Fault) -> Finding | str:
    """Fail when something finished is gone, or saved steps were done again."""
    found = [Evidence(what="finished before the fault, lost", file=name) for name in fault.lost]
    step = fault.resumed_step
    if fault.wanted_step is not None and (step is None or step < fault.wanted_step):
        found.append(
            Evidence(what="step that was gone on from", found=step, expected=fault.wanted_step)
        )
    last = fault.recovery or fault.attempt
    if fault.then != "refusal" and last.words != "0":
        found.append(Evidence(what=f"ending of the {last.name}", found=last.words, expected="0"))
    if not found:
        kept = f"{len(fault.finished)} finished files kept" if fault.finished else "nothing lost"
        return kept if step is None else f"{kept}, {step} steps kept"
    first = found[0]
    return Finding(
        message=f"{first.what}: {first.file or first.found}"
        + (f", expected {first.expected}" if first.expected is not None else "")
        + (f" (and {len(found) - 1} more)" if len(found) > 1 else ""),
        evidence=tuple(found),
        cause=f"{fault.fault} at {fault.moment}: what was left is not what the next run reads",
        remedy="read the log of the cell from 'recovery |' on",
    )
