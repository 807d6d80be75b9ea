"""A run that met a fault does not say clearly how it ended.

What it does: compares exit code or signal with what the design says (0 done, 2 a person's mistake,
3 could not be finished, 130 interrupted, 143 terminated), and reads the standard error: one message
of ours that names the cause, and no traceback.

Why it is bad: a scheduler restarts what cannot work, or does not restart what could; a person reads
a traceback of somebody else's code about a full disk. NaN that ends with exit code 0 is taken for a
success (FM41).

Example: `RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory`.

What to do: raise one of the project's errors where it happens, with what was found and what to type
next.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.facts.faults import Ending, Fault
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

MISTAKE = "2"


@probe("MPD732", modes=("FM41",), severity=Severity.CRITICAL)
def check(fault: Fault) -> Finding | str:
    """Fail when an ending has another code, no message, two messages or a traceback."""
    found = list(_check_ending(fault.attempt, fault.wanted_ending, fault.wanted_words, fault.hung))
    if fault.bystander is not None:
        found += _check_ending(fault.bystander, MISTAKE, "in use by another run")
    if fault.then == "refusal" and fault.recovery is not None:
        found += _check_ending(fault.recovery, MISTAKE, "")
    elif fault.recovery is not None:
        found += _check_ending(fault.recovery, "0", "")
    if not found:
        return f"the attempt ended with {fault.attempt.words}, and said what it should"
    first = found[0]
    return Finding(
        message=f"{first.what}: found {first.found}, expected {first.expected}",
        evidence=tuple(found),
        cause=f"{fault.fault} at {fault.moment} is not turned into one of the project's endings",
        remedy="catch it where it happens, and raise EngineError or a UsageError",
    )


def _check_ending(
    ending: Ending, wanted: str, words: str, hung: bool = False
) -> Iterator[Evidence]:
    """Yield what is wrong with one ending."""
    name = ending.name
    if ending.words != wanted:
        yield Evidence(what=f"ending of the {name}", found=ending.words, expected=wanted)
    if ending.traceback and not hung:
        last = ending.said[-1] if ending.said else ""
        yield Evidence(what=f"traceback of the {name}", found=last, expected="one message")
    if wanted == "0" or not wanted.isdecimal():
        return
    if ending.complaints != 1:
        yield Evidence(what=f"messages of the {name}", found=ending.complaints, expected=1)
    if words not in "\n".join(ending.said):
        yield Evidence(what=f"message of the {name}", found=list(ending.said[:5]), expected=words)
