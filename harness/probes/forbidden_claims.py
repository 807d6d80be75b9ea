"""The model claims what it must never claim.

What it does: looks in the answers for the claims that the voice profile forbids, and compares their
share with the base's.

Why it is bad: the person that was trained is gone where it matters most (FM66): a keeper of a pond
that calls itself a language model.

Example: 12 of 64 answers make a forbidden claim; of the base's none.

What to do: look for the claim in the training data; train the last stage again.
"""

from __future__ import annotations

from harness.facts.behaviour import BehaviourFacts
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe
from harness.weighing.collapse import wilson_interval


@probe("MPD622", modes=["FM66"], severity=Severity.HIGH)
def check(behaviour: BehaviourFacts) -> Finding | str:
    """Count forbidden claims, and those of the base."""
    scores, control = behaviour.scores, behaviour.control_scores
    if scores is None or scores.voice is None:
        raise Missing("there is no voice profile; pass --voice FILE")
    if scores.claims is None:
        raise Missing("the voice profile forbids no claim; add `forbidden:` to it")
    if control is None or control.claims is None:
        raise Missing(behaviour.why_no_control)
    total, mine, theirs = len(scores.claims), sum(scores.claims), sum(control.claims)
    text = f"{mine} of {total} answers make a forbidden claim, of the base's {theirs}"
    low, high = (wilson_interval(count / total, total) for count in (mine, theirs))
    if low[0] <= high[1]:
        return text
    first = scores.claims.index(True)
    return Finding(
        message=text,
        evidence=(
            Evidence(what="answers with such a claim", found=mine, expected=f"about {theirs}"),
            Evidence(what="the first", found=behaviour.answers.texts[first][:120]),
        ),
        cause="the last stage of training brought the claim in, or took the voice away",
        remedy="look for the claim in the training data, and train the last stage again",
    )
