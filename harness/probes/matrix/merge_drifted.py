"""A merge in a lifecycle did not put exactly its adapter into its base.

What it does: for every merge, and every module whose change can be told from rounding, computes k,
the share of the adapter's change that arrived between the stage's own base and its result. It must
be 1.

Why it is bad: small errors of a merge add up over the rounds, and a merge into the wrong round's
base loses a whole topic while everything looks right (FM20, FM35, FM36).

Example: the second topic merged into the first base: k = 1, and the first topic is gone.

What to do: merge again from the base that the adapter was trained on; its manifest names it.
"""

from __future__ import annotations

from harness.facts.lifecycle import Lifecycle
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

NEAR = 0.01
"""Distance of k from 1 that rounding explains."""


@probe("MPD736", modes=("FM20", "FM35", "FM36"), severity=Severity.CRITICAL)
def check(lifecycle: Lifecycle) -> Finding | str:
    """Fail at a merge whose k is not 1, or of which nothing can be said."""
    merges = [one for one in lifecycle.stages if one.kind == "merged"]
    wrong = [
        Evidence(what=f"k in {one.name}", found=[one.k_low, one.k_high], expected=1.0)
        for one in merges
        if one.k_low is None or one.k_high is None or one.k_low < 1 - NEAR or one.k_high > 1 + NEAR
    ]
    if not wrong:
        return f"k = 1 in {sum(one.judged for one in merges)} modules of {len(merges)} merges"
    return Finding(
        message=f"{len(wrong)} of {len(merges)} merges did not add their adapter once: "
        f"{wrong[0].what} is {wrong[0].found}",
        evidence=tuple(wrong),
        cause="another base than the adapter's, a merge that did nothing, or a scale left out",
        remedy="merge again from the base that the adapter's mudpuppy.json names",
    )
