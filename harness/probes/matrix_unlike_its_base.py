"""Single matrices have nothing in common with those of the base.

What it does: compares every matrix with the base's by the angle between them. Training turns a
matrix by a few degrees; at a right angle (cosine near 0) it is not the base's matrix any more,
while the others still are. What an adapter explains, or a change of low rank, is left alone.

Why it is bad: a loader draws a tensor at random that it does not find under its name, and the next
save keeps the random values as if they were trained (FM34): one layer of noise in a model that
loads without a word. A tensor of another model or layer, copied by a script, looks the same.

Example: `model.layers.3.self_attn.q_proj.weight`: cosine 0.00; the other 223 matrices: 0.999.

What to do: load the base again, look for "newly initialized" among the warnings, and merge or train
anew; or copy the one tensor from the base.
"""

from __future__ import annotations

from harness.facts.merges import Strangers
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import probe


@probe("MPD413", modes=["FM34"], severity=Severity.CRITICAL)
def check(strangers: Strangers) -> Finding | str:
    """Look for matrices at a right angle to the base's."""
    if not strangers.found:
        return f"{strangers.near} matrices are near those of the base {strangers.base}, none unlike"
    name, cosine = next(iter(strangers.found.items()))
    count = len(strangers.found)
    return Finding(
        message=f"{agree(count, 'matrix has', 'matrices have')} nothing in common with the base's, "
        f"such as {name} (cosine {cosine:.2f}), while {strangers.near} others are near theirs",
        evidence=tuple(
            Evidence(
                what="cosine of the angle to the base's",
                tensor=tensor,
                found=one,
                expected="above 0.9 after training",
            )
            for tensor, one in strangers.found.items()
        ),
        cause="the loader did not find the tensor and drew it at random, or it was copied from "
        "another model or layer",
        remedy='load the base again and look for "newly initialized" among the warnings; then '
        "merge or train anew",
    )
