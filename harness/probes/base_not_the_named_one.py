"""The base that is compared with is not the one that the adapter names.

What it does: where `base_model_name_or_path` is a model in a local folder, compares the weights of
the adapted modules in it with those of the base that was passed, or that the merge was made with.

Why it is bad: an adapter is a difference. Put on another model, or on an earlier stage of the same
one, it is slightly to badly wrong (FM35); a DPO adapter that was trained on the merged SFT model
and is merged into the original base has lost the SFT, and k = 1 all the same (FM36).

Example: adapter_config.json names runs/sft-merged, the merge began on models/base.

What to do: merge into the model that adapter_config.json names; or pass that one with `--base`.
"""

from __future__ import annotations

from harness.facts.checkpoint import Lineage
from harness.facts.merges import StageBase
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

LARGEST_REST = 0.05
"""Rest beside the change, beyond rounding, from which the merge was made on yet another base."""


@probe("MPD412", modes=["FM35", "FM36"], severity=Severity.HIGH)
def check(stage_base: StageBase, any_lineage: Lineage | None) -> Finding | str:
    """Report two bases, unless the values say that the merge was made with the named one."""
    stage = stage_base
    if not stage.differing:
        return f"the base {stage.compared} is the one that the adapter names"
    if any_lineage is not None and not _fits(any_lineage):
        return "the merge was not made with the base that was passed: see its other findings"
    module, gap = max(stage.differing.items(), key=lambda item: item[1])
    merged = "merged into" if any_lineage is not None else "looked at with"
    return Finding(
        message=f"the adapter names {stage.named} as its base and is {merged} {stage.compared}: "
        f"{module} differs by {gap:.2g} of its norm between the two",
        evidence=tuple(
            Evidence(what="distance between the two bases", tensor=name, found=float(f"{one:.3g}"))
            for name, one in stage.differing.items()
        ),
        cause="another model or revision was passed, or the stage before was left out",
        remedy=f"merge into {stage.named}, or pass it with --base",
    )


def _fits(lineage: Lineage) -> bool:
    """Whether most modules are this base and once the adapter's change."""
    judged = [one for one in lineage.modules if one.resolvable]
    good = [
        one
        for one in judged
        if abs(one.k - 1) <= one.k_margin and one.residual < LARGEST_REST + 3 * one.noise
    ]
    return 2 * len(good) > len(judged)
