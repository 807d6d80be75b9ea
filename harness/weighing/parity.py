"""When do two forward passes over the same tokens disagree? One rule for the probes that ask it."""

from __future__ import annotations

from harness.facts.forward import Consistency
from harness.findings import Evidence, Finding
from harness.registry import Missing


def judge_gap(
    consistency: Consistency, name: str, what: str, *, cause: str, remedy: str
) -> Finding | str:
    """Judge one comparison of a checkpoint with itself.

    Args:
        consistency: all comparisons; the one of the same pass twice is the noise.
        name: which one, as `Consistency.gaps` has it.
        what: what was compared with what, for the sentence.
        cause: likely cause of a difference.
        remedy: what to type or change.

    Raises:
        Missing: the comparison was not made, and why.
    """
    gap = consistency.find(name)
    if gap is None:
        raise Missing(consistency.explain(name))
    text = f"{what} differ by {gap.relative:.2g} of the logits' size ({gap.precision})"
    if not gap.is_fault(consistency.find("repeat")):
        return text
    return Finding(
        message=f"{text}; {gap.flips} of {gap.positions} most probable tokens change",
        evidence=(
            Evidence(
                what=f"difference relative to the logits, in {gap.precision}",
                found=round(gap.relative, 6),
                expected="about 0",
            ),
            Evidence(what="KL divergence, nats per token", found=round(gap.kl, 6), expected=0),
        ),
        cause=cause,
        remedy=remedy,
    )
