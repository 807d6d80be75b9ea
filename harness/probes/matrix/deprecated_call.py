"""The engine calls something that its libraries are about to take away.

What it does: listens to DeprecationWarning, PendingDeprecationWarning and FutureWarning while the
engine trains, and keeps those whose caller is a file of the engine.

Why it is bad: such a warning is next month's TypeError: whoever installs the newest release cannot
train (FM42 was one). Python hides it by default, so nobody sees it in time.

Example: `Trainer(tokenizer=...)` warned for a year before it raised.

What to do: call what the warning names instead.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe


@probe("MPD717", modes=("FM42",), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when a call of the engine raised a deprecation warning."""
    if observations.ending != "trained":
        raise Missing("the run did not come to its end")
    heard = observations.deprecations
    if not heard:
        return "no call of the engine is deprecated"
    return Finding(
        message=heard[0] + (f" (and {len(heard) - 1} more)" if len(heard) > 1 else ""),
        evidence=tuple(Evidence(what="deprecated call", found=line) for line in heard[:5]),
        cause="a library has given up what the engine calls",
        remedy="call what the warning names instead",
    )
