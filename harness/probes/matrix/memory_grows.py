"""Memory grows with every run in one process.

What it does: fits a line through the memory of a process after each of many cycles of load, train,
save, merge and unload, and compares the 95% interval of its slope with a stated bound. Host memory
and, where there is a device, the memory allocated on it.

Why it is bad: a server that trains adapters one after the other, a notebook, or a sweep ends when
the memory does, hours in; something still holds the models that are gone.

Example: a list of callbacks keeps a reference to each trainer: 1.2 MB a cycle on a model of 1 MB.

What to do: look for what outlives `train()`: a module-level list or cache, a hook that was not
removed, a registered function. `gc.get_referrers` of an old model names its holder.
"""

from __future__ import annotations

from harness.facts.trials import Growth, Soak
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe


@probe("MPD740", modes=(), severity=Severity.CRITICAL)
def check(soak: Soak) -> Finding | str:
    """Fail when the slope of a memory lies above its bound, beyond the noise."""
    memories = [one for one in soak.growths if one.quantity.endswith("memory")]
    growing = [one for one in memories if one.low > one.bound]
    if growing:
        return Finding(
            message="; ".join(f"{one.quantity} grows by {_interval(one)}" for one in growing),
            evidence=tuple(
                Evidence(
                    what=f"slope of {one.quantity}, bytes per cycle",
                    found=round(one.slope),
                    expected=f"at most {one.bound:,.0f}",
                )
                for one in growing
            ),
            cause="something that outlives a run holds its model, its optimizer or its data",
            remedy="look for module-level lists and caches, hooks and registered functions",
        )
    unclear = [one for one in memories if one.high > one.bound]
    if unclear or not memories:
        words = "; ".join(f"{one.quantity} {_interval(one)}" for one in unclear)
        raise Missing(f"cannot be told after {soak.cycles} cycles: {words or 'not measured'}")
    return "; ".join(f"{one.quantity} {_interval(one)}" for one in memories)


def _interval(one: Growth) -> str:
    return (
        f"{one.slope:,.0f} bytes a cycle (95% interval {one.low:,.0f} to {one.high:,.0f}, "
        f"bound {one.bound:,.0f}, {len(one.values)} cycles)"
    )
