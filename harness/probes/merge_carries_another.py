"""A merged model that carries another adapter than the one it should.

What it does: takes base and k times the adapter's change away from the merged weights and measures
the rank of what is left. Rounding and other bases leave noise of full rank; here a few directions
are left, as only another adapter leaves them.

Why it is bad: the merge began on a model that had another adapter in it already, or took another
adapter, or another step of this one: what is served is not the model that was tested (FM18, FM36).
In a chain such as SFT then DPO it also tells that the base that was named is not the model of the
stage before.

Example: k = 1.00, and a rest of rank 8 as large as the change itself, in 64 of 64 modules.

What to do: merge once, from the base that the adapter was trained on. If an earlier stage is meant
to be in it, compare with the merged model of that stage: `--base STAGE`.
"""

from __future__ import annotations

from harness.facts.checkpoint import Lineage
from harness.facts.merges import MergeStory
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import Missing, probe


@probe("MPD410", modes=["FM18", "FM35", "FM36"], severity=Severity.HIGH)
def check(lineage: Lineage, merge_story: MergeStory) -> Finding | str:
    """Look for a rest of low rank."""
    judged = {one.module: one for one in lineage.modules}
    carried = {
        name: merge_story.leftovers[name].rank
        for name in merge_story.modules_of("low-rank")
        if name in judged and not judged[name].is_doubled
    }
    beside = merge_story.carries_another
    also = {n: one.rank for n, one in merge_story.astray.items() if one.kind == "low-rank"}
    if not carried and not beside and not any(one.resolvable for one in lineage.modules):
        raise Missing("the adapter's change is smaller than the rounding of the merged weights")
    if not carried and not beside:
        return f"nothing else of low rank was merged into {len(judged)} modules"
    found = carried or also
    name = next(iter(found))
    k = judged[name].k if name in judged else 1.0
    instead = abs(k) < 0.5
    return Finding(
        message=f"{agree(len(found), 'tensor holds', 'tensors hold')} the change of another "
        f"adapter {'instead of' if instead else 'besides'} this one: what is left over in {name} "
        f"has rank {found[name]} (k = {k:.3f})",
        evidence=tuple(
            Evidence(what="rank of what is left over", tensor=module, found=rank, expected=0)
            for module, rank in found.items()
        ),
        cause="another adapter, or another step of this one, was merged"
        if instead
        else "the merge began on a model that had another adapter in it, or the base that is named "
        "is not the stage before",
        remedy="merge this adapter alone into its base; if an earlier stage belongs into it, pass "
        "that stage's merged model as --base",
    )
