"""Open files or threads grow with every run in one process.

What it does: fits a line through the number of open files and of threads after each of many cycles
of load, train, save, merge and unload, and compares the 95% interval of its slope with a stated
bound.

Why it is bad: the limit of open files is often 1024: the run after the last one fails in a place
that has nothing to do with the cause. Threads that stay keep what they refer to, and their stacks.

Example: a log file is opened for each run and closed by nobody: one more file a cycle.

What to do: open files in a `with` block; stop and join every thread and pool that a run starts.
"""

from __future__ import annotations

from harness.facts.trials import Soak
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe


@probe("MPD741", modes=(), severity=Severity.CRITICAL)
def check(soak: Soak) -> Finding | str:
    """Fail when the slope of open files or of threads lies above its bound."""
    handles = [one for one in soak.growths if not one.quantity.endswith("memory")]
    growing = [one for one in handles if one.low > one.bound]
    if growing:
        return Finding(
            message="; ".join(
                f"{one.quantity} grow by {one.slope:.2f} a cycle, from {one.values[0]:.0f} to "
                f"{one.values[-1]:.0f}"
                for one in growing
            ),
            evidence=tuple(
                Evidence(
                    what=f"slope of {one.quantity} per cycle",
                    found=round(one.slope, 3),
                    expected=f"at most {one.bound:g}",
                )
                for one in growing
            ),
            cause="a run opens or starts something and does not end it",
            remedy="close files in a with block; join threads and pools",
        )
    unclear = [one.quantity for one in handles if one.high > one.bound]
    if unclear or not handles:
        raise Missing(
            f"cannot be told after {soak.cycles} cycles: {', '.join(unclear) or 'not measured'}"
        )
    return "; ".join(f"{one.values[-1]:.0f} {one.quantity}, no more each cycle" for one in handles)
