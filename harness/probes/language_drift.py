"""The model answers in another script than its base, or in broken characters.

What it does: counts the letters of all answers by script, for the checkpoint and for its base.

Why it is bad: the answers cannot be read by who asked: a merge or a fine-tune drifted into another
language (FM15), or the tokenizer no longer fits the weights and the text is broken (FM11).

Example: 0.96 of the base's letters are Latin, of the checkpoint's 0.11; 0.71 are CJK.

What to do: look at the language of the training data, and whether the tokenizer is the base's.
"""

from __future__ import annotations

from harness.facts.behaviour import BehaviourFacts
from harness.facts.text import count_scripts
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

ENOUGH = 60
"""Letters from which on shares of scripts mean anything."""
CLEAR = 0.9
"""Share of one script in the base's answers that makes it the language that was asked in."""
LEFT = 0.4
"""Share of that script below which the checkpoint has left it; names and code keep some."""


@probe("MPD609", modes=["FM15", "FM11"], severity=Severity.MEDIUM)
def check(behaviour: BehaviourFacts) -> Finding | str:
    """Compare the scripts of the answers with those of the base."""
    if behaviour.control is None:
        raise Missing(behaviour.why_no_control)
    theirs = count_scripts(behaviour.control.said)
    mine = count_scripts(behaviour.answers.said)
    if mine.total() < ENOUGH or theirs.total() < ENOUGH:
        return "the answers have too few letters to tell a script, or needed no generation"
    script, count = theirs.most_common(1)[0]
    if count < CLEAR * theirs.total() or script == "?":
        raise Missing("the answers of the base are of no one script")
    share, before = mine[script] / mine.total(), count / theirs.total()
    if share >= LEFT:
        return f"{share:.2f} of the letters are {script}, of the base's {before:.2f}"
    other, number = (mine - type(mine)({script: mine[script]})).most_common(1)[0]
    return Finding(
        message=f"{share:.2f} of the letters are {script}, of the base's {before:.2f}",
        evidence=(
            Evidence(what=f"share of {script}", found=round(share, 3), expected=">= 0.4"),
            Evidence(what=f"share of {other}", found=round(number / mine.total(), 3)),
            Evidence(what="an answer", found=behaviour.answers.said[0][:80]),
        ),
        cause="training data in another language, or a tokenizer that does not fit the weights",
        remedy="check the language of the data and that tokenizer.json is the base's",
    )
