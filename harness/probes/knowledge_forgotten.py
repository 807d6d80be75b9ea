"""The model no longer understands plain text, or a quiz, as its base did.

What it does: reads neutral texts, and the answers of a quiz where there is one, with the base and
with the checkpoint, in one forward pass each, and compares how likely they find them.

Why it is bad: training took what the base knew (FM15): the task is learnt and everything else lost.

Example: the base needs 2.1 nats per token for neutral texts, the checkpoint 5.8; KL 4.0.

What to do: fewer epochs, a lower learning rate or rank, and some general data among the task's.

How it decides: the perplexity must have grown fivefold, with 95% confidence over the texts, in
texts that the base itself finds likely. A fine-tune for one subject stays far below that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from harness.facts.forward import Forwards
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

FIVEFOLD = math.log(5)
"""Growth of the perplexity that is forgetting, in nats per token."""
KNOWN = 0.6
"""Share of the entropy of the vocabulary below which a base understands a text."""
FEW = 6
"""Texts below which nothing is said."""


@probe("MPD610", modes=["FM15"], severity=Severity.HIGH)
def check(forward: Forwards) -> Finding | str:
    """Compare likelihoods, text by text."""
    mine, base = forward.mine, forward.base
    if base is None:
        raise Missing("needs the base to compare with; pass --base PATH")
    if forward.divergence is None:
        raise Missing("checkpoint and base read the texts as different tokens")
    known = KNOWN * math.log(max(base.vocabulary, 2))
    checked = []
    for what, ours, theirs in _pairs(forward):
        grown = [a - b for a, b in zip(ours, theirs, strict=True) if b < known and math.isfinite(a)]
        if len(grown) < FEW:
            continue
        low = fmean(grown) - 1.96 * stdev(grown) / math.sqrt(len(grown))
        checked.append(f"{what}: {fmean(grown):+.2f} nats per token")
        if low > FIVEFOLD:
            return _find(what, fmean(grown), low, forward.divergence, fmean(theirs))
    if not checked:
        raise Missing("the base finds too few of the texts likely, or the checkpoint is not finite")
    return f"{'; '.join(checked)} against the base ({mine.prompts} prompts)"


def _pairs(forward: Forwards) -> list[tuple[str, Sequence[float], Sequence[float]]]:
    assert forward.base is not None
    mine, base = forward.mine, forward.base
    pairs: list[tuple[str, Sequence[float], Sequence[float]]]
    pairs = [("neutral texts", mine.text_nll, base.text_nll)]
    if forward.from_quiz and mine.places == base.places and not mine.nonfinite:
        pairs.append(("quiz", mine.nll, base.nll))
    return pairs


def _find(
    what: str, grown: float, low: float, divergence: Sequence[float], theirs: float
) -> Finding:
    return Finding(
        message=f"{what} cost {grown:.2f} nats per token more than the base's {theirs:.2f} "
        f"(with 95% confidence at least {low:.2f})",
        evidence=(
            Evidence(
                what=f"growth of the perplexity, {what}",
                found=round(math.exp(min(grown, 50)), 1),
                expected="below 5",
            ),
            Evidence(what="KL divergence from the base", found=round(fmean(divergence), 3)),
        ),
        cause="learning rate, epochs or rank too high for narrow data; or damaged weights",
        remedy="train again with a lower learning rate and fewer epochs, or mix in general data",
    )
