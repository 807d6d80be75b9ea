"""A merge that was rounded: the change arrived, and with it a lot of noise.

What it does: compares merged - base with the change of the adapter. k is near 1, but what is left
over is far more than the type of the file explains, in the adapted modules only.

Why it is bad: the merged model is worse than the adapter it came from (FM13). The sum was quantised
again after merging, or the change was folded onto weights other than those it was trained on.

Example: k = 1.002, residual 0.395, where bf16 explains 0.006: merged, then rounded to int4.

What to do: merge on the dequantised weights that the adapter was trained on, and save in bf16
without quantising. If 4 bits are needed, quantise afterwards with calibration (GPTQ) and measure.
"""

from __future__ import annotations

from harness.facts.checkpoint import Drifts, Lineage, ModuleLineage
from harness.facts.merges import MergeStory
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

ALLOWED_RESIDUAL = 0.05
"""Residual allowed beyond three times what rounding to the file's type explains: merges by PEFT
leave less than 0.003 in the tests' models, rounding to int4 leaves 0.2."""
NEAR_ONE = 0.3
"""Beyond it the scale is wrong, which is merge-wrongly-scaled's finding, and explains the rest."""


@probe("MPD404", modes=["FM13"], severity=Severity.HIGH)
def check(lineage: Lineage, drifts: Drifts, merge_story: MergeStory) -> Finding | str:
    """Look for residuals beyond rounding, where the rest of the model is that of the base."""
    judged = [one for one in lineage.modules if one.resolvable and abs(one.k - 1) < NEAR_ONE]
    if not judged:
        raise Missing("no module has a merged change that can be judged")
    if lineage.plain_base_fits:
        return _folded_on_plain(lineage, judged)
    other = merge_story.modules_of("low-rank", "plain-lora", "transposed")
    noisy = [one for one in judged if one.residual > _limit(one) and one.module not in other]
    moved = [one for one in drifts.tensors if not one.is_target and one.relative > one.tolerance]
    if not noisy:
        return f"{len(judged)} modules hold the change without rounding noise"
    if any(_is_unquantised(one.name) for one in moved):
        return "the residuals come with other tensors that moved: see base-mismatch"
    if merge_story.is_on_four_bits and not merge_story.modules_of("four-bit"):
        return _merged_after_rounding(lineage, noisy)
    noisy.sort(key=lambda one: (-one.residual, one.module))
    worst = noisy[0]
    return Finding(
        message=f"{len(noisy)} of {len(judged)} merged modules were rounded: residual "
        f"{worst.residual:.3f} in {worst.module}, {worst.noise:.3f} expected",
        evidence=tuple(
            Evidence(
                what="residual",
                tensor=one.module,
                found=round(one.residual, 4),
                expected=f"at most {_limit(one):.3f}",
            )
            for one in noisy
        ),
        cause="the merged weights were quantised again, or the adapter was trained on a quantised "
        "base and merged into another",
        remedy="merge again on the weights the adapter was trained on and save in bf16",
    )


def _merged_after_rounding(lineage: Lineage, noisy: list[ModuleLineage]) -> Finding:
    return Finding(
        message="the base went through 4 bits before the merge, in all its linear layers, and the "
        f"adapter was added afterwards ({len(noisy)} modules): right if it was trained so",
        evidence=(Evidence(what="weights merged into", found="4-bit values", expected="base"),),
        cause="merged on the dequantised weights of a 4-bit model",
        remedy=f"compare it with the adapter on {lineage.base}; merge on that base if the adapter "
        "was trained on it",
        severity=Severity.MEDIUM,
    )


def _limit(one: ModuleLineage) -> float:
    return ALLOWED_RESIDUAL + 3 * one.noise


def _is_unquantised(name: str) -> bool:
    return "embed" in name or "norm" in name or name.startswith("lm_head")


def _folded_on_plain(lineage: Lineage, judged: list[ModuleLineage]) -> Finding:
    return Finding(
        message="the adapter was trained on a 4-bit base and merged into the 16-bit one "
        f"({len(judged)} modules): a slightly different model than the one that was trained",
        evidence=(Evidence(what="weights merged into", found="base", expected=lineage.reference),),
        cause="merged by a tool that loads the original base",
        remedy="measure both; to get the trained model, train again with "
        "mud-puppy ... --method qlora --merge-lora, which merges on the weights that were trained",
        severity=Severity.NOTE,
    )
