"""Training took far more memory than the engine predicted.

What it does: compares how much the process grew from the first step to its peak, and on a GPU the
peak of the tensors, with the prediction in run.json. More than twice as much, beyond what libraries
and the allocator take once whatever the model is, is a finding.

Why it is bad: whoever believed the estimate runs out of memory in the middle of the night; and
memory that nobody planned for is often a copy that nobody wanted, such as a second set of logits.

Example: 2.1 GB predicted, 9.8 GB taken: the reference model was on the device twice.

What to do: compare the parts that `mud-puppy estimate` lists with a memory profile of one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe

FACTOR = 2.0
"""Times the prediction that may be taken."""
ONCE = 512 << 20
"""Bytes that libraries and the allocator take once, whatever the model is: code that is read from
disk at its first use, thread stacks, arenas (measured on a model of 2 MB: 30 to 150 MB)."""
COMPILER = 4 << 30
"""The same with torch.compile, whose compiler runs in the process."""


@probe("MPD718", modes=("FM25",), severity=Severity.CRITICAL)
def check(observations: Observations, expectation: Mapping[str, Any]) -> Finding | str:
    """Fail when the peak lies beyond the prediction."""
    seen = observations.memory
    if seen is None or observations.ending != "trained":
        raise Missing("the memory of the run was not measured")
    parts = observations.run.get("predicted_bytes") or {}
    if not parts:
        raise Missing("the engine predicted nothing for this model")
    compiles = bool((expectation.get("config") or {}).get("compile"))
    predicted = sum(parts.values())
    allowed = FACTOR * predicted + (COMPILER if compiles else ONCE)
    taken = seen.device_peak_bytes or max(0, seen.peak_bytes - seen.before_bytes)
    words = f"took {taken / 1e6:,.0f} MB, {predicted / 1e6:,.0f} MB predicted"
    if taken <= allowed:
        return words
    return Finding(
        message=words,
        evidence=(
            Evidence(
                what="bytes taken while training",
                found=taken,
                expected=f"at most {allowed:,.0f}: {FACTOR:g} times the prediction and a margin",
            ),
        ),
        cause="something is held that was not planned for, or the prediction leaves a part out",
        remedy="compare `mud-puppy estimate` part by part with a memory profile of one step",
    )
