"""From the endings of the probes to one word: healthy, sick or unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.findings import ProbeResult, Severity, Status, Verdict


def judge(
    results: Sequence[ProbeResult],
    unread: Mapping[str, str],
    fail_on: Severity = Severity.MEDIUM,
) -> tuple[Verdict, str]:
    """Return the verdict and the sentence that gives its reason.

    Args:
        results: the endings of every probe on every subject.
        unread: subjects whose weights could not be read at all, and why; never healthy.
        fail_on: the least severity of a finding that makes the checkpoint sick.
    """
    sick = [result for result in results if result.is_sick_at(fail_on)]
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
        text = f"{first.code} {first.name} could not be checked: {first.reason}{more}"
        return Verdict.UNKNOWN, text
    passed = sum(result.status is Status.PASSED for result in results)
    if not passed:
        return Verdict.UNKNOWN, "none of the selected probes could examine anything"
    return Verdict.HEALTHY, f"{_count(passed, 'check')} found nothing wrong{_unchecked(results)}"


def _unchecked(results: Sequence[ProbeResult]) -> str:
    number = sum(result.is_unchecked for result in results)
    return f"; {number} {'was' if number == 1 else 'were'} not checked" if number else ""


def _explain_sick(sick: Sequence[ProbeResult], crashed: Sequence[ProbeResult]) -> str:
    names = list(dict.fromkeys(f"{result.code} {result.name}" for result in sick))
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    failed = f"; {_count(len(crashed), 'probe')} could not finish" if crashed else ""
    return f"{_count(len(sick), 'finding')}: {shown}{failed}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
