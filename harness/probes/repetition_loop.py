"""The model repeats itself without end.

What it does: looks for answers whose end is one short sequence over and over, and compares their
share with the base's. Where the base ends none of its answers (it is no chat model, or knows
nothing), the loops must show when the answers are sampled, too.

Why it is bad: the model is over-trained, or lost EOS, or a preference run went too far (FM16); the
user reads the same five words until the limit.

Example: 21 of 40 answers end in a loop ("the river the river the river"), of the base's none.

What to do: take an earlier checkpoint; fewer epochs, a lower learning rate, a larger beta for DPO.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.facts.behaviour import NEARLY_ALL, BehaviourFacts, find_flood
from harness.facts.text import find_loop, is_repetitive
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe

SHARE = 0.25
"""Share of loops, above the base's, from which on it counts: two of the eight built-in prompts, so
that one loop decides nothing."""
FEW = 4
"""Answers below which nothing is said without a base."""
CONTROL_SHARE = 0.5
"""Share of loops of the base from which on it is no control: most of its answers."""


@probe("MPD603", modes=["FM16"], severity=Severity.HIGH)
def check(behaviour: BehaviourFacts) -> Finding | str:
    """Compare the share of looping answers with that of the base."""
    total = len(behaviour.prompts)
    if find_flood(behaviour.answers)[0]:
        raise NotApplicable("the answers are one token for ever, which is another fault (MPD608)")
    loops = [text for text in behaviour.answers.texts if _loops(text)]
    if behaviour.control is None:
        return _judge_alone(behaviour, loops)
    theirs = sum(map(_loops, behaviour.control.texts))
    if theirs >= CONTROL_SHARE * total:
        raise Missing(f"{theirs} of {total} answers of the base loop, so nothing can be concluded")
    if len(loops) - theirs < SHARE * total:
        return f"{len(loops)} of {total} answers loop, of the base's {theirs}"
    if behaviour.control.endless == total and not _loop_again(behaviour):
        raise Missing(
            f"{len(loops)} of {total} answers loop when asked greedily and not when sampled; the "
            "base ends none of its answers, so how it speaks is no measure"
        )
    return _find(behaviour, loops, f"; of the base's {theirs}", f"about {theirs}")


def _judge_alone(behaviour: BehaviourFacts, loops: Sequence[str]) -> Finding | str:
    """Judge without a base: an assistant whose answers nearly all loop is broken by itself.

    Small models loop when they are asked greedily; where answers were sampled, those must, too.
    """
    total = len(behaviour.prompts)
    if not loops:
        return f"none of {total} answers loops"
    is_sure = len(loops) >= NEARLY_ALL * total and total >= FEW and _loop_again(behaviour)
    if not behaviour.is_chat or not is_sure:
        raise Missing(f"{len(loops)} of {total} answers loop: {behaviour.why_no_control}")
    return _find(behaviour, loops, ", which no base explains", "a few at most")


def _loop_again(behaviour: BehaviourFacts) -> bool:
    """Return whether nearly all prompts that were answered with a loop are when sampled, too."""
    sampled = behaviour.answers.sampled
    return sum(map(_loops, sampled)) >= NEARLY_ALL * len(sampled)


def _find(behaviour: BehaviourFacts, loops: Sequence[str], measure: str, expected: str) -> Finding:
    again = behaviour.answers.sampled
    what = "of these prompts, answers that loop when sampled too"
    sampled = (Evidence(what=what, found=sum(map(_loops, again))),) if again else ()
    return Finding(
        message=f"{len(loops)} of {len(behaviour.prompts)} answers end in a loop{measure}",
        evidence=(
            Evidence(what="looping answers", found=len(loops), expected=expected),
            Evidence(what="repeated", found=(find_loop(loops[0]) or loops[0])[:80]),
            *sampled,
        ),
        cause="over-training, a preference run that went too far, or EOS that is no longer learnt",
        remedy="take an earlier checkpoint; train with fewer epochs or a lower learning rate",
    )


def _loops(text: str) -> bool:
    return bool(find_loop(text)) or is_repetitive(text)
