"""A merge with a wrong scale.

What it does: compares merged - base with the change that the adapter describes; k is how much of it
arrived. Here k is neither 0, 1 nor 2.

Why it is bad: the trained change is too weak or too strong (FM26). Usual causes: rsLoRA's alpha /
sqrt(r) read as alpha / r (k = 1 / sqrt(r)), alpha_pattern or rank_pattern ignored, a missing
lora_alpha replaced by a default.

Example: k = 0.25 in all modules of an rsLoRA adapter of rank 16.

What to do: merge with PEFT, which knows all settings: `PeftModel.from_pretrained(base, ADAPTER)
.merge_and_unload()`.
"""

from __future__ import annotations

from harness.facts.checkpoint import Lineage, ModuleLineage
from harness.findings import Evidence, Finding
from harness.registry import Missing, probe


@probe("MPD403", modes=["FM26", "FM62"])
def check(lineage: Lineage) -> Finding | str:
    """Look for modules whose k is not 1, 0 or 2."""
    judged = [one for one in lineage.modules if one.resolvable]
    if not judged:
        raise Missing("the adapter's change is smaller than the rounding of the merged weights")
    wrong = [one for one in judged if _is_wrong(one)]
    if not wrong:
        return f"no module of {len(judged)} has a wrong scale"
    wrong.sort(key=lambda one: (-abs(one.k - 1), one.module))
    return Finding(
        message=f"the adapter arrived with a wrong scale in {len(wrong)} of {len(judged)} modules: "
        f"k = {wrong[0].k:.3f}, 1 expected",
        evidence=tuple(
            Evidence(
                what="k",
                tensor=one.module,
                found=round(one.k, 4),
                expected=f"1 +- {one.k_margin:.3f}",
            )
            for one in wrong
        ),
        cause="use_rslora, alpha_pattern or rank_pattern was ignored, lora_alpha was edited, or "
        "the adapter is of another step than the merge",
        remedy="merge again with PEFT: PeftModel.from_pretrained(base, ADAPTER).merge_and_unload()",
    )


def _is_wrong(one: ModuleLineage) -> bool:
    return abs(one.k - 1) > one.k_margin and not (one.has_no_effect or one.is_doubled)
