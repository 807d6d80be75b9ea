"""From the endings of the probes to one word: healthy, sick or unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.findings import ProbeResult, Severity, Status, Verdict

ASKABLE = {"adapter", "model", "served model"}
"""Kinds of subjects that would answer."""


def judge(
    results: Sequence[ProbeResult],
    unread: Mapping[str, str],
    sampled: int = 0,
    unasked: str = "",
) -> tuple[Verdict, str]:
    """Return the verdict and the sentence that gives its reason.

    Args:
        results: the endings of every probe on every subject.
        unread: subjects whose weights could not all be read, and why; never healthy.
        sampled: tensors of which only a sample was read.
        unasked: what the model was not asked; files alone do not tell what it says.
    """
    sick = [result for result in results if result.is_sick]
    crashed = [result for result in results if result.status is Status.CRASHED]
    if sick:
        return Verdict.SICK, _explain_sick(sick, crashed)
    if unread:
        where, why = next(iter(unread.items()))
        place = "" if where == "." else f"{where}: "
        said = "" if why.startswith("--") else "the weights could not be examined: "
        return Verdict.UNKNOWN, f"{said}{place}{why}"
    if crashed:
        first = crashed[0]
        more = f" (and {len(crashed) - 1} more)" if len(crashed) > 1 else ""
        if more and len({result.reason for result in crashed}) == 1:
            return Verdict.UNKNOWN, f"{len(crashed)} checks could not finish: {first.reason}"
        text = f"{first.code} {first.name} could not be checked: {first.reason}{more}"
        return Verdict.UNKNOWN, text
    passed = sum(result.status is Status.PASSED for result in results)
    if not passed and not any(result.status is Status.FAILED for result in results):
        return Verdict.UNKNOWN, "none of the selected probes could examine anything"
    rest = (f"; {unasked}" if unasked else "") + _accepted(results) + _unchecked(results)
    known = sum(result.is_known and _counted(result) for result in results)
    if known:
        text = f"nothing new; {_count(known, 'finding')} known from before"
        return Verdict.NO_WORSE, text + _sampled(sampled) + rest
    text = f"{_count(passed, 'check')} found nothing wrong" + _sampled(sampled)
    return Verdict.HEALTHY, text + rest


def why_unasked(subjects: Sequence[Mapping[str, Any]]) -> str:
    """Return what no model was asked, in a few words; empty where one was asked a quiz.

    Args:
        subjects: what was examined, with a line of `answers` where there are some.
    """
    askable = [one for one in subjects if one.get("kind") in ASKABLE]
    answers = [one["answers"] for one in askable if one.get("answers")]
    if not askable or any("accuracy" in said for said in answers):
        return ""
    if answers:
        return "what the model knows was not asked (--quiz FILE)"
    return "the model was not asked anything"


def _sampled(number: int) -> str:
    return f" (a sample of {_count(number, 'large tensor')}; --quick)" if number else ""


def _counted(result: ProbeResult) -> bool:
    """Whether a finding that is known would count if it were new."""
    return not result.accepted and result.severity is not Severity.NOTE


def _accepted(results: Sequence[ProbeResult]) -> str:
    number = sum(bool(result.accepted) for result in results)
    return f"; {_count(number, 'finding')} accepted" if number else ""


def _unchecked(results: Sequence[ProbeResult]) -> str:
    number = sum(result.is_unchecked for result in results)
    return f"; {number} {'was' if number == 1 else 'were'} not checked" if number else ""


def _explain_sick(sick: Sequence[ProbeResult], crashed: Sequence[ProbeResult]) -> str:
    order = list(Severity)
    roots = [result for result in sick if not result.caused_by] or list(sick)
    roots.sort(key=lambda result: order.index(result.severity or Severity.CRITICAL))
    names = list(dict.fromkeys(f"{result.code} {result.name}" for result in roots))
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    follows = len(sick) - len(roots)
    more = f", and {follows} that {'follows' if follows == 1 else 'follow'}" if follows else ""
    failed = f"; {_count(len(crashed), 'probe')} could not finish" if crashed else ""
    return f"{_count(len(roots), 'finding')}: {shown}{more}{failed}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
