"""A command ended and left a process running, or could not be ended when it hung.

What it does: looks for processes that a command had started once it has ended. A run that is made
to hang, with a child in a session of its own, must be ended at its time limit together with that
child, and the place where it hung must be in its output.

Why it is bad: what is left holds memory, devices and locks: the next run on the machine fails, or
is slow, for a reason that nobody finds; and a hang without a stack is found by nobody either (FM18
is one way in which two runs meet in a folder).

Example: a data loader's workers that wait for ever for a parent that was killed.

What to do: start children so that they end with their parent, and let the runner end the whole
group.
"""

from __future__ import annotations

from harness.facts.faults import Fault
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD734", modes=("FM18",), severity=Severity.CRITICAL)
def check(fault: Fault) -> Finding | str:
    """Fail when a process outlives its command, or a hang is not ended with its place told."""
    found = [Evidence(what="process alive", found=pid) for pid in fault.survivors]
    endings = [one for one in (fault.attempt, fault.bystander, fault.recovery) if one is not None]
    found += [
        Evidence(what=f"processes left by the {one.name}", found=one.children_left, expected=0)
        for one in endings
        if one.children_left and not (fault.hung and one is fault.attempt)
    ]
    if fault.hung and not fault.attempt.timed_out:
        found.append(Evidence(what="ended at its time limit", found=False, expected=True))
    if fault.hung and not fault.attempt.children_left:
        found.append(Evidence(what="children that were ended with it", found=0, expected=1))
    if fault.hung and fault.wanted_ending == "SIGTERM" and not fault.attempt.stack:
        found.append(Evidence(what="stack in its output", found=False, expected=True))
    if not found:
        return "no process outlived its command"
    return Finding(
        message=f"{found[0].what}: {found[0].found}",
        evidence=tuple(found),
        cause="a child in a session of its own, or a signal that does not reach it",
        remedy="see harness.process: the mark in the environment finds every descendant",
    )
