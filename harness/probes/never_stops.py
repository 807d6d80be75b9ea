"""The model does not end its answers.

What it does: asks a list of prompts greedily and counts the answers that reach the limit without
EOS, against the base on the same prompts; where most do, a few are given many more tokens, and
P(EOS) is measured where reference answers end.

Why it is bad: every answer costs the longest possible time and ends in invented turns (FM01, FM02).
EOS was masked in the labels, most often because pad and EOS are one token, or the training text has
none.

Example: 38 of 40 answers reach 48 tokens; of the base's, 1.

What to do: use a pad token that is not EOS, see to it that each sample ends in EOS and that EOS is
not masked (after a run of `mud-puppy`: `labels` in mudpuppy.json counts `eos_tokens` and
`samples_ending_in_eos`), and train again.
"""

from __future__ import annotations

from harness.facts.behaviour import NEARLY_ALL, BehaviourFacts, find_flood
from harness.facts.forward import Forwards
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe
from harness.weighing.collapse import wilson_interval

SHARE = 0.5
"""Share of unfinished answers from which on a model counts as not stopping: most of them. A base
that does so itself is no control."""


ABLE = 0.1
"""Median P(end) where reference answers end from which on a model is able to end."""
NEVER = 0.01
"""The same below which a model judged without its base as good as never ends."""
FEW = 2
"""Answers that must have been given more tokens before anything is said without a base."""
SURE = 0.3
"""The same of a base that is sure to end; with less of it nothing can be told from one pass."""


@probe("MPD602", modes=["FM01", "FM02", "FM37"], severity=Severity.CRITICAL)
def check(behaviour: BehaviourFacts, any_forward: Forwards | None) -> Finding | str:
    """Compare the share of unfinished answers with that of the base."""
    control, total = behaviour.control, len(behaviour.prompts)
    if control is None:
        return _judge_alone(behaviour, any_forward)
    mine = behaviour.answers.endless
    theirs = control.endless
    limit = behaviour.max_new_tokens
    if theirs >= SHARE * total:
        raise Missing(f"{theirs} of {total} answers of the base do not end within {limit} tokens")
    if mine < SHARE * total or _low(mine, total) <= _high(theirs, total):
        return f"{mine} of {total} answers are unfinished after {limit} tokens, the base's {theirs}"
    if behaviour.answers.nonfinite_logits >= SHARE * total:
        raise NotApplicable("the logits are not finite, which is another fault (MPD606)")
    if find_flood(behaviour.answers)[0]:
        raise NotApplicable("the answers are one token for ever, which is another fault (MPD608)")
    patient = behaviour.answers.patient
    if patient and sum(patient) >= SHARE * len(patient):
        return f"{mine} of {total} answers are long, but {sum(patient)} of {len(patient)} end later"
    ends = _ends(any_forward)
    if ends is not None and ends[0] >= ABLE and ends[0] >= ends[1] / 2:
        return f"{mine} of {total} are cut, but P(end) where references end is {ends[0]:.2f}"
    return Finding(
        message=f"{mine} of {total} answers do not end within {limit} tokens, the base's {theirs}",
        evidence=(
            Evidence(what="unfinished answers", found=mine, expected=f"about {theirs}"),
            *(
                Evidence(
                    what="P(end) where reference answers end, median",
                    found=float(f"{mine_end:.3g}"),
                    expected=f"about {their_end:.2g}",
                )
                for mine_end, their_end in ([ends] if ends is not None else [])
            ),
        ),
        cause="EOS was masked in the labels (pad token equal to EOS), or the samples have none",
        remedy="use a pad token that is not EOS, end every sample in EOS, and train again",
    )


def _judge_alone(behaviour: BehaviourFacts, forward: Forwards | None) -> Finding | str:
    """Judge without a base: an assistant that ends nearly nothing, given much time, is broken.

    Of a model at hand P(end) must be next to nothing, too: some are taught to answer at length.
    """
    total, mine = len(behaviour.prompts), behaviour.answers.endless
    patient, limit = behaviour.answers.patient, behaviour.max_new_tokens
    if not mine:
        return f"none of {total} answers is unfinished after {limit} tokens"
    if find_flood(behaviour.answers)[0]:
        raise NotApplicable("the answers are one token for ever, which is another fault (MPD608)")
    if sum(patient) >= SHARE * max(1, len(patient)):
        return f"{mine} of {total} answers are long, but {sum(patient)} of {len(patient)} end later"
    is_able = forward is not None and forward.mine.typical_last_end >= NEVER
    if is_able or not behaviour.is_chat or mine < NEARLY_ALL * total or len(patient) < FEW:
        said = f"{mine} of {total} answers are unfinished after {limit} tokens"
        raise Missing(f"{said}: {behaviour.why_no_control}")
    return Finding(
        message=f"{mine} of {total} answers do not end within {limit} tokens, and of "
        f"{len(patient)} that were given many more {sum(patient)} do",
        evidence=(
            Evidence(what="unfinished answers", found=mine, expected="a few at most"),
            Evidence(what="one of them", found=behaviour.answers.texts[0][:120]),
        ),
        cause="EOS was masked in the labels, or the server does not know the token that ends turns",
        remedy="ask the base on the same server (--endpoint-base, --base-model, or --base for a "
        "folder); where that one ends, see that every sample ends in EOS and train again",
    )


def _ends(forward: Forwards | None) -> tuple[float, float] | None:
    """Return P(end) where reference answers end, of both; None where the base is not sure."""
    if forward is None or forward.base is None or not forward.base.prompts:
        return None
    ends = forward.mine.typical_last_end, forward.base.typical_last_end
    return ends if ends[1] >= SURE else None


def _low(count: int, total: int) -> float:
    return wilson_interval(count / total, total)[0]


def _high(count: int, total: int) -> float:
    return wilson_interval(count / total, total)[1]
