"""The model does not end its answers.

What it does: asks a list of prompts greedily and counts the answers that reach the limit without
EOS, against the base on the same prompts.

Why it is bad: every answer costs the longest possible time and ends in invented turns (FM01, FM02).
EOS was masked in the labels, most often because pad and EOS are one token, or the training text has
none.

Example: 38 of 40 answers reach 48 tokens; of the base's, 1.

What to do: use a pad token that is not EOS, see to it that each sample ends in EOS and that EOS is
not masked (after a run of `mud-puppy`: `labels` in mudpuppy.json counts `eos_tokens` and
`samples_ending_in_eos`), and train again.
"""

from __future__ import annotations

from harness.collapse import wilson_interval
from harness.facts.behaviour import BehaviourFacts
from harness.findings import Evidence, Finding
from harness.registry import Missing, probe

SHARE = 0.5
"""Share of unfinished answers from which on a model counts as not stopping: most of them. A base
that does so itself is no control."""


@probe("MPD602", modes=["FM01", "FM02"])
def check(behaviour: BehaviourFacts) -> Finding | str:
    """Compare the share of unfinished answers with that of the base."""
    control, total = behaviour.control, len(behaviour.prompts)
    if control is None:
        raise Missing("needs the base to compare with; pass --base PATH")
    mine = behaviour.answers.endless
    theirs = control.endless
    limit = behaviour.max_new_tokens
    if theirs >= SHARE * total:
        raise Missing(f"{theirs} of {total} answers of the base do not end within {limit} tokens")
    if mine < SHARE * total or _low(mine, total) <= _high(theirs, total):
        return f"{mine} of {total} answers are unfinished after {limit} tokens, the base's {theirs}"
    return Finding(
        message=f"{mine} of {total} answers do not end within {limit} tokens, the base's {theirs}",
        evidence=(Evidence(what="unfinished answers", found=mine, expected=f"about {theirs}"),),
        cause="EOS was masked in the labels (pad token equal to EOS), or the samples have none",
        remedy="use a pad token that is not EOS, end every sample in EOS, and train again",
    )


def _low(count: int, total: int) -> float:
    return wilson_interval(count / total, total)[0]


def _high(count: int, total: int) -> float:
    return wilson_interval(count / total, total)[1]
