"""A step of a lifecycle takes more memory in later rounds.

What it does: compares the peak memory of the process of the same step, over the rounds: the last
may not lie above the first by more than its noise.

Why it is bad: a model that grows in memory and not on disk: an embedding that was untied, a type
that became wider, a tensor that is held twice. After enough rounds the machine is too small (FM18).

Example: bf16 that comes back as fp32 from every merge.

What to do: `mud-puppy estimate` on the base of the first and of the last round tells which part has
grown.
"""

from __future__ import annotations

from itertools import groupby

from harness.facts.lifecycle import Lifecycle
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

NOISE = 0.1
"""Share of the first round's peak that the last may lie above it."""


@probe("MPD739", modes=("FM18",), severity=Severity.CRITICAL)
def check(lifecycle: Lifecycle) -> Finding | str:
    """Fail when the last round of a step peaks above the first."""
    measured = [one for one in lifecycle.stages if one.peak_rss_bytes is not None]
    wrong: list[Evidence] = []
    for step, group in groupby(sorted(measured, key=lambda s: s.step), key=lambda s: s.step):
        first, *later = (int(one.peak_rss_bytes or 0) for one in group)
        if later and later[-1] > first * (1 + NOISE):
            wrong.append(
                Evidence(what=f"peak memory of {step}, in bytes", found=later[-1], expected=first)
            )
    if not wrong:
        return f"no step of {len(measured)} measured ones takes more memory in later rounds"
    return Finding(
        message=f"{wrong[0].what}: {wrong[0].found}, {wrong[0].expected} in the first round",
        evidence=tuple(wrong),
        cause="the model of a later round is larger in memory than the first one",
        remedy="mud-puppy estimate on the bases of both rounds",
    )
