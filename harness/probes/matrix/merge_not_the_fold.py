"""The merged model is not base plus adapter.

What it does: folds the saved adapter into the base once more in float64, DoRA and rsLoRA by their
own formulas, and compares every tensor of the merged model with it: how far it is off, and whether
all roundings together lean to one side of zero.

Why it is bad: a merge that scales wrongly, leaves layers out or starts from other weights than
training saw answers like another model, most often only a little (FM13, FM20, FM26, FM62).

Example: rsLoRA's root is forgotten: the change is too small by the root of the rank.

What to do: compare the tensor named with `W + scale * B @ A`, by hand.
"""

from __future__ import annotations

from harness.findings import Finding, Severity
from harness.observations import Observations
from harness.registry import NotApplicable, probe
from harness.weighing.twin_evidence import as_evidence, require_twin


@probe("MPD729", modes=("FM13", "FM20", "FM26", "FM62"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when a merged tensor is not the fold of base and adapter."""
    twin = require_twin(observations, "merge")
    if twin.merge is None:
        raise NotApplicable("nothing was merged")
    if not twin.merge:
        return "every merged tensor is the fold of base and adapter"
    wrong = [as_evidence(one) for one in twin.merge]
    return Finding(
        message=f"{len(wrong)} merged tensors are not base plus adapter, such as "
        f"{wrong[0].tensor or wrong[0].what}",
        evidence=tuple(wrong[:8]),
        cause="another scale, another base, or layers that the merge left out",
        remedy="merge again, and compare the tensor named by hand",
    )
