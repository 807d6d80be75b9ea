"""A merge that gave experts the wrong change.

What it does: where an adapter holds one pair of factors for all experts of a layer, compares
merged - base with the change of each expert by itself; k is how much of it arrived. Where k is not
1, it looks whether the change of another expert fits, or one with axes in the wrong order.

Why it is bad: the other experts and the attention are right, so answers are good until the router
picks a wrong one (FM62). Layouts of fused experts differ between libraries, and the factors are
read by position.

Example: `model.layers.4.mlp.experts.3.down_proj.weight: k = 0.01; it holds the change of expert 0`.

What to do: merge with PEFT, which wrote the factors: `PeftModel.from_pretrained(base, ADAPTER)
.merge_and_unload()`.
"""

from __future__ import annotations

from harness.facts.weights import ExpertLineage
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import probe


@probe("MPD423", modes=["FM62"], severity=Severity.CRITICAL)
def check(expert_lineage: tuple[ExpertLineage, ...]) -> Finding | str:
    """Judge k of every expert."""
    bad = sorted((one for one in expert_lineage if not one.is_right), key=lambda o: -abs(o.k - 1))
    if not bad:
        return f"k is 1 in {agree(len(expert_lineage), 'matrix', 'matrices')} of experts"
    first = next((one for one in bad if one.explained_by), bad[0])
    because = f": it holds {first.explained_by}" if first.explained_by else ""
    return Finding(
        message=f"{len(bad)} of {len(expert_lineage)} matrices of experts did not get their "
        f"change: {first.tensor} has k = {first.k:.3g}{because}",
        evidence=tuple(
            Evidence(
                what="k" if not one.explained_by else f"k; it holds {one.explained_by}",
                tensor=one.tensor,
                found=float(f"{one.k:.4g}"),
                expected=1,
            )
            for one in bad
        ),
        cause="the factors of fused experts were read in another layout, or some were left out",
        remedy="merge with PEFT: PeftModel.from_pretrained(base, ADAPTER).merge_and_unload()",
    )
