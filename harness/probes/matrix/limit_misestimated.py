"""What fits into the memory is not what the estimate says.

What it does: compares the largest batch or sequence that was trained under a memory limit, found by
trying, with the largest of which `mud-puppy estimate` says that it fits, within a stated factor.

Why it is bad: an estimate that promises too much costs a run that dies after an hour in the queue;
one that promises too little sends people to a larger machine, or to settings that train more
slowly.

Example: the logits of a large vocabulary were not counted: 12 sequences fit, 40 were promised.

What to do: compare the parts that `mud-puppy estimate` prints with a memory profile of the size
that died.
"""

from __future__ import annotations

from harness.facts.trials import Limits
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe


@probe("MPD742", modes=(), severity=Severity.CRITICAL)
def check(limits: Limits) -> Finding | str:
    """Fail when found and predicted differ by more than the factor."""
    found, said = limits.largest, limits.predicted
    if min(found, said) >= limits.ceiling:
        raise Missing(f"{limits.quantity} {limits.ceiling} fits and was to fit: raise the ceiling")
    memory = f"{limits.memory_bytes / 2**20:,.0f} MiB"
    words = f"{limits.quantity} {found} fits into {memory}, and the estimate says {said}"
    ratio = max(found, said) / max(min(found, said), 1)
    if min(found, said) > 0 and ratio <= limits.factor:
        return f"{words}: {ratio:.2f} times, {limits.factor:g} allowed"
    return Finding(
        message=f"{words}: {ratio:.2f} times, {limits.factor:g} allowed",
        evidence=(
            Evidence(
                what=f"largest {limits.quantity} that fits into {memory}",
                found=found,
                expected=f"{said}, within a factor of {limits.factor:g}",
            ),
        ),
        cause="a part of the memory is not counted, counted twice, or kept longer than assumed",
        remedy="compare the estimate's parts with a memory profile of the size that did not fit",
    )
