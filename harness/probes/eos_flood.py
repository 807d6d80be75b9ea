"""The model ends its answer before it began.

What it does: asks a list of prompts greedily and counts the answers whose first token is EOS.

Why it is bad: the model says nothing (FM40). Padding that is also EOS was not masked in the labels,
so that EOS was what training taught most; or the base was damaged while "only an adapter" trained.

Example: 40 of 40 answers are empty; the base answers all of them.

What to do: use a pad token of its own, mask padding with -100, and train again from the base.
"""

from __future__ import annotations

from harness.facts.behaviour import BehaviourFacts
from harness.facts.forward import Forwards
from harness.findings import Evidence, Finding, Severity
from harness.registry import ControlFailed, probe

SHARE = 0.5
"""Share of empty answers from which on a model counts as flooded: most of them. One or two empty
answers are a matter of the prompt."""


@probe("MPD601", modes=["FM40"], severity=Severity.CRITICAL)
def check(behaviour: BehaviourFacts, any_forward: Forwards | None) -> Finding | str:
    """Count empty answers of the checkpoint, and of the base as the control."""
    mine = behaviour.answers.empty
    total = len(behaviour.prompts)
    control = behaviour.control
    theirs = None if control is None else control.empty
    if mine < SHARE * total:
        return f"{mine} of {total} answers are empty"
    if theirs is not None and theirs >= SHARE * total:
        raise ControlFailed(f"the base leaves {theirs} of {total} prompts unanswered too")
    return Finding(
        message=f"{mine} of {total} answers end with their first token"
        + ("" if theirs is None else f"; of the base's {theirs}"),
        evidence=(
            Evidence(what="empty answers", found=mine, expected=theirs if theirs else "about none"),
            Evidence(what="first prompt", found=behaviour.prompts[0]),
            *(
                Evidence(what="median P(end) at the first token", found=round(share, 4))
                for share in _first_ends(any_forward)
            ),
        ),
        cause="padding equal to EOS was not masked in the labels, or the base weights were damaged",
        remedy="give the tokenizer a pad token of its own, mask padding with -100 and train again",
    )


def _first_ends(forward: Forwards | None) -> list[float]:
    return [forward.mine.typical_first_end] if forward is not None and forward.mine.prompts else []
