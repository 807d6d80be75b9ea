"""A merge that changed nothing: the merged model is the base.

What it does: compares merged - base with the change that the adapter describes; k is how much of it
arrived. Here k is 0.

Why it is bad: the training is gone, and the file looks like any other (FM20). Quantised layers that
hand out a copy of their weight make every merge a no-op; so does `model.merge_and_unload()` whose
result is not kept (FM54).

Example: k = 0.000 in 224 of 224 modules, logits equal to the base, difference 0.0.

What to do: `model = model.merge_and_unload()`, then save *that*. For a 4-bit base, merge on
the dequantised weights: `mud-puppy ... --method qlora --merge-lora` does while it trains.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.facts.checkpoint import Drifts, Lineage, ModuleLineage
from harness.facts.merges import MergeStory
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

UNRELATED = 0.2
"""Cosine below which a weight has nothing of the base in it; matrix-unlike-its-base reports it."""
_REMEDY = "merge again and save the model that merge_and_unload() returns"


@probe("MPD401", modes=["FM20", "FM54"], severity=Severity.CRITICAL)
def check(any_lineage: Lineage | None, drifts: Drifts, merge_story: MergeStory) -> Finding | str:
    """Look for modules with k = 0, or a whole model equal to its base."""
    if any_lineage is None:
        return _judge_identity(drifts)
    judged = [one for one in any_lineage.modules if one.resolvable]
    if not judged:
        raise Missing("the adapter's change is smaller than the rounding of the merged weights")
    # What came in its place, if anything, is the finding of merge-carries-another.
    other = merge_story.modules_of("low-rank", "transposed")
    others = {one.name for one in drifts.tensors if abs(one.cosine) < UNRELATED}
    strange = [one for one in judged if f"{one.module}.weight" in others and one.is_foreign]
    judged = [one for one in judged if one not in strange]
    if not judged:
        return "the adapted weights are not those of this base: see base-mismatch"
    lost = [one for one in judged if one.has_no_effect and one.module not in other]
    if not lost and any_lineage.not_compared:
        module, why = next(iter(any_lineage.not_compared.items()))
        raise Missing(
            f"{len(any_lineage.not_compared)} adapted modules could not be compared, such as "
            f"{module} ({why}); the change arrived in the other {len(judged)}"
        )
    if not lost:
        unlike = f"; {len(strange)} are unlike the base's" if strange else ""
        return f"the adapter's change arrived in {len(judged)} modules{unlike}"
    lost.sort(key=lambda one: (abs(one.k), one.module))
    return Finding(
        message=f"the merge had no effect in {len(lost)} of {len(judged)} modules (k = "
        f"{lost[0].k:.3f}, 1 expected): "
        + _say_what_is_there(lost)
        + (", and only part of the adapter was merged" if len(lost) < len(judged) else ""),
        evidence=tuple(
            Evidence(what="k", tensor=one.module, found=round(one.k, 4), expected=1.0)
            for one in lost
        ),
        cause="the result of merge_and_unload() was not kept, or quantised layers took the change "
        "on a copy of their weight",
        remedy=_REMEDY,
    )


def _say_what_is_there(lost: Sequence[ModuleLineage]) -> str:
    """Return what is in the modules: without the change they need not be the base's."""
    foreign = sum(one.is_foreign for one in lost)
    if not foreign:
        return "they are those of the base"
    return f"{'they' if foreign == len(lost) else foreign} differ from the base in another way"


def _judge_identity(drifts: Drifts) -> Finding | str:
    moved = [one for one in drifts.tensors if one.relative > one.tolerance]
    if moved or drifts.shape_changed or not drifts.tensors or not drifts.same_names:
        return f"the weights differ from the base {drifts.base}"
    rounded = "" if drifts.identical else " but for the rounding of its type"
    return Finding(
        message=f"every one of {len(drifts.tensors)} tensors is equal to the base {drifts.base}"
        f"{rounded}",
        evidence=(Evidence(what="tensors that differ", found=0, expected="at least 1"),),
        cause="the untrained model was saved, or a merge had no effect",
        remedy=_REMEDY,
        # An unmodified copy may be what was wanted; a base that was named is a claim of training.
        severity=Severity.HIGH if drifts.identical else Severity.NOTE,
    )
