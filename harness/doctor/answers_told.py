"""What the doctor tells of answers: their scores in a line, and what was asked for and not judged.

Nobody says how good a model must be: low scores without a control are no finding, and no health.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from harness.facts.behaviour import Answers, BehaviourFacts
from harness.findings import ProbeResult

JUDGES = {"accuracy-collapse": "--quiz", "voice-collapse": "--voice"}
"""The probes that judge what a flag asks for."""


def describe_answers(behaviour: BehaviourFacts) -> str:
    """Return the scores of a checkpoint and of its base, and how many answers end, in a line."""
    parts = []
    for name, mine, theirs in (
        ("accuracy", behaviour.exact, behaviour.control_exact),
        ("voice", behaviour.voice, behaviour.control_voice),
    ):
        if mine:
            base = f" (base {fmean(theirs):.2f})" if theirs else ""
            alone = behaviour.why_markers_alone if name == "voice" else ""
            by = f" by its markers alone ({alone})" if alone else ""
            parts.append(f"{name} {fmean(mine):.2f}{base}{by}")
    ended, asked = _count_ended(behaviour.answers)
    if asked:
        base = ""
        if behaviour.control is not None:
            base_ended, base_asked = _count_ended(behaviour.control)
            base = f" (base {base_ended} of {base_asked})" if base_asked else ""
        parts.append(f"{ended} of {asked} answers end{base}")
    return ", ".join(parts)


def _count_ended(answers: Answers) -> tuple[int, int]:
    """Return how many answers ended by themselves, and of how many that is known."""
    known = [ended for ended in answers.ended if ended is not None]
    return sum(known), len(known)


def why_unjudged(
    results: Sequence[ProbeResult], behaviour: BehaviourFacts, flags: Sequence[str]
) -> str:
    """Return why scores that were asked for are no sign of health; empty where they were judged.

    Args:
        results: the endings of the probes on this subject.
        behaviour: its answers.
        flags: those of `JUDGES` that a person gave.
    """
    if behaviour.control is not None:
        return ""
    for result in results:
        flag = JUDGES.get(result.name, "")
        if flag in flags and result.is_unchecked:
            return f"{flag} could not be judged: {result.reason}"
    return ""
