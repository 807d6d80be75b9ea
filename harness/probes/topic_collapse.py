"""One topic is lost while the others hold.

What it does: compares accuracy and voice with the base's for every topic, chapter and unit that the
quiz names, and with the thresholds of the voice profile where it sets some.

Why it is bad: the mean hides it (FM66): a curriculum that trains topic by topic loses the first
ones while it learns the last.

Example: accuracy 0.94 over all; of the topic `geography` 0.00, the base's 1.00.

What to do: train the topic again, or mix some of its samples into the later stages.

How it decides: as accuracy-collapse and voice-collapse do, with a confidence that is the higher the
more groups there are; groups of fewer than four questions say nothing. Where the whole score has
collapsed, those probes speak and this one does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from harness.facts.behaviour import BehaviourFacts, Scores
from harness.findings import Evidence, Finding, Severity
from harness.registry import ControlFailed, Missing, NotApplicable, probe
from harness.weighing.collapse import FLOOR, KEPT, judge_scores

FEW = 4
"""Questions of a group below which nothing is said."""
Measured = tuple[str, Sequence[float], Sequence[float], Mapping[str, tuple[int, ...]]]


@probe("MPD621", modes=["FM66"], severity=Severity.HIGH)
def check(behaviour: BehaviourFacts) -> Finding | str:
    """Judge every group by itself."""
    if behaviour.scores is None or not behaviour.groups:
        raise Missing("there is no quiz with topics; pass --quiz FILE")
    if behaviour.control_scores is None:
        raise Missing(behaviour.why_no_control)
    measured = list(_measures(behaviour, behaviour.scores, behaviour.control_scores))
    if not measured:
        raise Missing("the quiz has no facts, and there is no voice profile")
    found: list[Evidence] = []
    total = 0
    for name, mine, theirs, groups in measured:
        if _has_collapsed(mine, theirs):
            raise NotApplicable(f"the whole {name} has collapsed, which is another finding")
        for group, places in groups.items():
            total += 1
            found += _judge(name, group, mine, theirs, places, len(groups))
        found += _below(name, mine, theirs, groups, behaviour.thresholds)
    if not found:
        return f"{total} scores of topics, chapters and units hold"
    return Finding(
        message=f"{found[0].what} is {found[0].found}, expected {found[0].expected}",
        evidence=tuple(found),
        cause="later stages of training overwrote what earlier ones had taught",
        remedy="train the topic again, or mix some of its samples into the later stages",
    )


def _measures(behaviour: BehaviourFacts, mine: Scores, theirs: Scores) -> Iterator[Measured]:
    """Yield accuracy, by the measure that forgives most, and voice."""
    for ours, base in ((mine.keys, theirs.keys), (mine.f1, theirs.f1)):
        if ours is not None and base is not None:
            yield "accuracy", ours, base, behaviour.fact_groups
            break
    if mine.voice is not None and theirs.voice is not None:
        yield "voice", mine.voice, theirs.voice, behaviour.groups


def _has_collapsed(mine: Sequence[float], theirs: Sequence[float]) -> bool:
    return fmean(mine) < KEPT * fmean(theirs)


def _judge(
    name: str,
    group: str,
    mine: Sequence[float],
    theirs: Sequence[float],
    places: Sequence[int],
    groups: int,
) -> list[Evidence]:
    if len(places) < FEW:
        return []
    ours, base = [mine[n] for n in places], [theirs[n] for n in places]
    try:
        outcome = judge_scores(name, name, ours, base, "", sureness=1 - 0.05 / groups)
    except ControlFailed:
        return []  # neither scores here: this group says nothing
    if isinstance(outcome, str):
        return []
    expected = f"about the base's {fmean(base):.2f}"
    return [Evidence(what=f"{name} of {group}", found=round(fmean(ours), 3), expected=expected)]


def _below(
    name: str,
    mine: Sequence[float],
    theirs: Sequence[float],
    groups: Mapping[str, tuple[int, ...]],
    thresholds: Mapping[str, float],
) -> Iterator[Evidence]:
    """Yield the groups below a threshold of the profile; never by a scorer that is dead."""
    if max(fmean(mine), fmean(theirs)) < FLOOR:
        return
    every = {"final answers": tuple(range(len(mine)))} | dict(groups)
    for group, places in every.items():
        least = thresholds.get(f"{name} {group.partition(' ')[0]}")
        score = fmean(mine[n] for n in places)
        if least is not None and score < least:
            yield Evidence(
                what=f"{name} of {group}", found=round(score, 3), expected=f"at least {least:g}"
            )
