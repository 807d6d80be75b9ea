"""A reward model gives every text the same score.

What it does: scores answers with their own prompt and with another one.

Why it is bad: the head was not saved, or is zero: the score means nothing, and a policy trained
with it learns nothing (FM63).

Example: eight unlike texts score 0.0137 each.

What to do: train with the head in `modules_to_save` and save it; load it as a sequence classifier.
"""

from __future__ import annotations

from harness.facts.forward import Consistency
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe

SPREAD = 1e-4
"""Range of the scores, relative to their size, below which they are constant."""


@probe("MPD618", modes=["FM63"], severity=Severity.CRITICAL)
def check(consistency: Consistency) -> Finding | str:
    """Look at the range of the scores of unlike texts."""
    if consistency.kind != "scorer":
        raise NotApplicable("not a reward model")
    scores = consistency.scores
    if len(scores) < 2:
        raise Missing("there is no tokenizer to read texts with")
    finite = [one for one in scores if abs(one) < float("inf")]
    spread = max(finite) - min(finite) if len(finite) == len(scores) else 0.0
    if spread > SPREAD * max(1e-6, *map(abs, finite)):
        return f"{len(scores)} texts score between {min(finite):.3g} and {max(finite):.3g}"
    found = round(finite[0], 6) if finite else "not finite"
    return Finding(
        message=f"{len(scores)} unlike texts all score {found}",
        evidence=(Evidence(what="range of the scores", found=spread, expected="more than 0"),),
        cause="the score head is zero, not finite, or was not saved",
        remedy="train with the head in modules_to_save, and save it with the adapter",
    )
