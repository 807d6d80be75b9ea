"""A merge with a wrong scale.

What it does: compares merged - base with the change that the adapter describes; k is how much of it
arrived. Here k is neither 0, 1 nor 2, or the change arrived in another form: without DoRA's
magnitudes, or with rows and columns exchanged. The k of the usual mistakes are known, and the one
that fits is named.

Why it is bad: the trained change is too weak, too strong or reversed (FM26, FM62). Usual causes:
rsLoRA's alpha / sqrt(r) read as alpha / r (k = 1 / sqrt(r)), alpha_pattern or rank_pattern ignored,
a missing lora_alpha replaced by a default.

Example: k = 0.25 in all modules of an rsLoRA adapter of rank 16.

What to do: merge with PEFT, which knows all settings: `PeftModel.from_pretrained(base, ADAPTER)
.merge_and_unload()`.
"""

from __future__ import annotations

from harness.facts.checkpoint import Lineage, ModuleLineage
from harness.facts.merges import MergeStory
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

_FORMS = {
    "plain-lora": "the factors were added without DoRA's magnitudes",
    "transposed": "the change was added with rows and columns exchanged",
}
"""Other forms of the change than its size."""


@probe("MPD403", modes=["FM26", "FM62"], severity=Severity.CRITICAL)
def check(lineage: Lineage, merge_story: MergeStory) -> Finding | str:
    """Look for modules whose k is not 1, 0 or 2, and for changes of another form."""
    formed = merge_story.modules_of(*_FORMS)
    judged = [one for one in lineage.modules if one.resolvable or one.module in formed]
    if not judged:
        raise Missing("the adapter's change is smaller than the rounding of the merged weights")
    other = merge_story.modules_of("low-rank")
    wrong = [
        one
        for one in judged
        if one.module in formed or (_is_wrong(one) and one.module not in other)
    ]
    if not wrong:
        return f"no module of {len(judged)} has a wrong scale"
    wrong.sort(key=lambda one: (-abs(one.k - 1), one.module))
    words = _name(wrong[0], merge_story)
    return Finding(
        message=f"the adapter arrived with a wrong scale in {len(wrong)} of {len(judged)} modules: "
        f"k = {wrong[0].k:.3f}, 1 expected" + (f": {words}" if words else ""),
        evidence=tuple(
            Evidence(
                what="k" + (f": {said}" if (said := _name(one, merge_story)) else ""),
                tensor=one.module,
                found=round(one.k, 4),
                expected=f"1 +- {one.k_margin:.3f}",
            )
            for one in wrong
        ),
        cause=f"merged with another scale than it was trained with: {words}"
        if words
        else "use_rslora, alpha_pattern or rank_pattern was ignored, lora_alpha was edited, or "
        "the adapter is of another step than the merge",
        remedy="merge again with PEFT: PeftModel.from_pretrained(base, ADAPTER).merge_and_unload()",
    )


def _name(one: ModuleLineage, story: MergeStory) -> str:
    left = story.leftovers.get(one.module)
    if left is not None and left.kind in _FORMS:
        return _FORMS[left.kind]
    return story.scales.get(one.module, "")


def _is_wrong(one: ModuleLineage) -> bool:
    return abs(one.k - 1) > one.k_margin and not (one.has_no_effect or one.is_doubled)
