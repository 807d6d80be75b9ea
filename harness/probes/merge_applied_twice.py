"""An adapter that was merged twice.

What it does: compares merged - base with the change that the adapter describes; k is how much of it
arrived. Here k is 2.

Why it is bad: the model overshoots: more extreme than the adapter it came from, often incoherent
(FM19, FM62). Every tensor is finite and of the right shape.

Example: k = 2.00 in 64 of 64 modules, after merging into a folder whose adapter_config.json made
the loader apply the adapter a second time.

What to do: merge once, from the original base: load base and adapter, merge_and_unload(), save into
an *empty* folder.
"""

from __future__ import annotations

from harness.facts.checkpoint import Lineage
from harness.findings import Evidence, Finding
from harness.registry import Missing, probe


@probe("MPD402", modes=["FM19", "FM20"])
def check(lineage: Lineage) -> Finding | str:
    """Look for modules with k = 2."""
    judged = [one for one in lineage.modules if one.resolvable]
    if not judged:
        raise Missing("the adapter's change is smaller than the rounding of the merged weights")
    twice = [one for one in judged if one.is_doubled]
    if not twice:
        return f"no adapter was merged twice into {len(judged)} modules"
    return Finding(
        message=f"the adapter was merged twice into {len(twice)} of {len(judged)} modules "
        f"(k = {twice[0].k:.3f}, 1 expected)",
        evidence=tuple(
            Evidence(what="k", tensor=one.module, found=round(one.k, 4), expected=1.0)
            for one in twice
        ),
        cause="a model that was merged already was loaded with its adapter and merged again",
        remedy="merge once, from the original base, into an empty folder",
    )
