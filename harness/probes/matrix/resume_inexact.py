"""A run that was disturbed ends as another run than the same one undisturbed.

What it does: compares every step of the log and every tensor of every artefact with a twin that
nothing disturbed, bit for bit (on a CPU), and the names of what is left in the folder.

Why it is bad: something was not restored: the optimizer, the schedule, the random state, the place
in the data. The loss goes on falling and nothing shows it (FM14, FM58, FM18).

Example: a resumed run whose dropout starts from the seed again.

What to do: find the first step that differs; what that step reads and the checkpoint does not hold
is it.
"""

from __future__ import annotations

from harness.facts.faults import Fault
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD731", modes=("FM14", "FM18", "FM58"), severity=Severity.CRITICAL)
def check(fault: Fault) -> Finding | str:
    """Fail when a step or a tensor differs from the twin's, or nothing was compared."""
    if fault.then == "refusal":
        return "the run was refused, and there is nothing to compare"
    found = [Evidence(what="differs from the undisturbed run", tensor=n) for n in fault.differing]
    found += [Evidence(what="left in the folder", file=name) for name in fault.leftovers]
    if not fault.compared:
        found.append(Evidence(what="steps and tensors compared", found=0, expected="at least 1"))
    if not found:
        return f"{fault.compared} steps and tensors are those of the undisturbed run, bit for bit"
    first = found[0]
    return Finding(
        message=f"{len(fault.differing)} of {fault.compared} steps and tensors differ from the "
        f"undisturbed run; {first.what}: {first.tensor or first.file or first.found}",
        evidence=tuple(found),
        cause="something that the next step depends on was not restored",
        remedy="compare steps.jsonl of both runs: the first line that differs tells when",
    )
