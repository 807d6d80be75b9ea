"""A larger size fitted where a smaller one did not.

What it does: looks at every run of a search for the largest batch or sequence: nothing that fitted
may be larger, beyond the resolution of the search, than what did not, the runs that were repeated
after the search included; and the search must have kept to its number of runs.

Why it is bad: a limit that comes and goes is no limit: the same run fits today and dies tomorrow,
and every search by doubling and bisection says something else.

Example: batch 24 fits and batch 16 does not: a buffer is allocated in steps, or a run's memory is
not given back before the next.

What to do: repeat the runs that are named; look for allocations that depend on earlier ones.
"""

from __future__ import annotations

from harness.facts.trials import Limits
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD743", modes=(), severity=Severity.CRITICAL)
def check(limits: Limits) -> Finding | str:
    """Fail when the search was not monotone, or took more runs than it may."""
    made = limits.attempts
    if len(made) > limits.max_probes:
        return Finding(
            message=f"the search took {len(made)} runs, and {limits.max_probes} are allowed",
            evidence=(Evidence(what="runs", found=len(made), expected=limits.max_probes),),
            cause="the search does not keep to its bound",
            remedy="look at harness/trials/search.py",
        )
    fitted = [one.value for one in made if one.fits]
    refused = [one.value for one in made if not one.fits]
    if limits.monotone:
        endings = sorted({one.how for one in made})
        return f"{len(made)} runs do not contradict each other ({', '.join(endings)})"
    return Finding(
        message=f"{limits.quantity} {max(fitted)} fits and {min(refused)} does not",
        evidence=tuple(
            Evidence(what=f"{limits.quantity} {one.value}", found=one.how)
            for one in made
            if one.value in (max(fitted), min(refused))
        ),
        cause="memory is allocated in steps, or something of an earlier run is still held",
        remedy="repeat the two sizes by themselves",
    )
