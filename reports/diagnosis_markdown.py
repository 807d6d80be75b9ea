"""A diagnosis in Markdown, for an issue, a comment on a change, or the summary of a job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.findings import Diagnosis, ProbeResult, Severity, Status
from reports.diagnosis_summary import (
    Group,
    count_areas,
    count_endings,
    group_findings,
    group_reasons,
    group_subjects,
    list_answers,
    name_repair,
)
from reports.text import SHOWN_EVIDENCE, code_markdown, describe_evidence, escape_markdown

LIMIT = 60_000
"""Characters; a comment on GitHub holds 65,536."""
_SHOWN_SUBJECTS = 20
_SHOWN_PLACES = 10
"""Folders that are named for one finding."""


def write_markdown(diagnosis: Diagnosis) -> str:
    """Return the report; everything that comes from the checkpoint is escaped."""
    head = [f"# {diagnosis.verdict.upper()}: {escape_markdown(diagnosis.path)}"]
    head.append(f"{escape_markdown(diagnosis.why)}.")
    grouped = group_subjects(diagnosis)
    named = [
        f"- {_places(names)}: {escape_markdown(text)}" for names, text in grouped[:_SHOWN_SUBJECTS]
    ]
    if len(grouped) > _SHOWN_SUBJECTS:
        named.append(f"- and {len(grouped) - _SHOWN_SUBJECTS} more")
    blocks = [*head, "\n".join(named)]
    tail = [*(f"{escape_markdown(remark)}." for remark in diagnosis.remarks), _summary(diagnosis)]
    room = LIMIT - sum(len(block) + 2 for block in (*blocks, *tail))
    middle = list(_middle(diagnosis))
    for number, block in enumerate(middle):
        room -= len(block) + 2
        if room < 200:
            left = f"*{len(middle) - number} more parts are left out here; "
            blocks.append(f"{left}`--format json` or `html` has all.*")
            break
        blocks.append(block)
    return "\n\n".join(block for block in (*blocks, *tail) if block) + "\n"


def _middle(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield the parts of the report, the most important first."""
    for group in group_findings(diagnosis):
        yield "\n".join(_group(group, name_repair(diagnosis, group.finding.code)))
    yield from _settled(diagnosis)
    yield from _answers(diagnosis)
    crashed = [result for result in diagnosis.probes if result.status is Status.CRASHED]
    yield from _reasons("Could not finish", crashed, is_open=True)
    unchecked = [result for result in diagnosis.probes if result.is_unchecked]
    yield from _reasons("Not checked", unchecked)
    yield "\n".join(_table(diagnosis))
    yield from _reasons("Does not apply", [r for r in diagnosis.probes if not r.applies])


def _answers(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield how each model that was asked answered: passed or not, the scores are of interest."""
    asked = list_answers(diagnosis)
    lines = [
        f"- {_places([subject])}: {escape_markdown(scores)}"
        for subject, scores in asked[:_SHOWN_SUBJECTS]
    ]
    if len(asked) > _SHOWN_SUBJECTS:
        lines.append(f"- and {len(asked) - _SHOWN_SUBJECTS} more")
    if lines:
        yield "\n".join(["## Answers", "", *lines])


def _summary(diagnosis: Diagnosis) -> str:
    parts = [f"{number:,} {word}" for number, word in count_endings(diagnosis)]
    return f"*{', '.join([*parts, f'exit code {diagnosis.exit_code}'])}*"


def _table(diagnosis: Diagnosis) -> Iterator[str]:
    yield "| area | passed | findings | notes | settled | could not finish | not checked |"
    yield "| --- | --: | --: | --: | --: | --: | --: |"
    for count in count_areas(diagnosis.probes):
        settled = (count.passed, count.findings, count.notes, count.settled)
        cells = (*settled, count.crashed, count.unchecked)
        yield f"| {count.area} | {' | '.join(str(cell) for cell in cells)} |"


def _title(result: ProbeResult) -> str:
    place = "" if result.subject == "." else f" in `{code_markdown(result.subject)}`"
    return f"{result.code} {result.name}{place}"


def _places(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_PLACES} more" if len(names) > _SHOWN_PLACES else ""
    return ", ".join(f"`{code_markdown(name)}`" for name in names[:_SHOWN_PLACES]) + more


def _group(group: Group, command: str) -> Iterator[str]:
    result = group.finding
    yield f"## {result.severity or Severity.CRITICAL}: {_title(result)}"
    yield ""
    yield escape_markdown(result.message)
    yield ""
    for piece in result.evidence[:SHOWN_EVIDENCE]:
        yield f"- seen: {escape_markdown(describe_evidence(piece))}"
    if len(result.evidence) > SHOWN_EVIDENCE:
        yield f"- and {len(result.evidence) - SHOWN_EVIDENCE} more"
    if group.elsewhere:
        yield f"- also in: {_places(group.elsewhere)}"
    yield f"- because: {escape_markdown(result.cause)}"
    yield f"- **fix**: {escape_markdown(result.remedy)}"
    if command:
        yield f"- mend: `{code_markdown(command)}`"
    for other in group.consequences:
        also = f" (also in {_places(other.elsewhere)})" if other.elsewhere else ""
        said = escape_markdown(other.finding.message)
        yield f"- explains {_title(other.finding)}{also}: {said}"
    yield f"- more: `mudpuppy-doctor explain {result.code}`"


def _settled(diagnosis: Diagnosis) -> Iterator[str]:
    accepted = [
        f"- {result.severity} {_title(result)}: {escape_markdown(result.message)} "
        f"(accepted: {escape_markdown(result.accepted)})"
        for result in diagnosis.findings
        if result.accepted
    ]
    known = [
        f"- {result.severity} {_title(result)}: {escape_markdown(result.message)}"
        for result in diagnosis.findings
        if result.is_known and not result.accepted
    ]
    gone = [
        f"- {code_markdown(one.code)} {escape_markdown(one.name)}: {escape_markdown(one.message)}"
        for one in diagnosis.fixed
    ]
    if accepted:
        yield _section("Accepted", accepted, is_open=True)
    if known:
        yield _section("Known from the baseline", known)
    if gone:
        yield _section("Gone since the baseline", gone, is_open=True)


def _reasons(title: str, results: list[ProbeResult], *, is_open: bool = False) -> Iterator[str]:
    lines = []
    for reason, several in group_reasons(results).items():
        names = ", ".join(dict.fromkeys(f"{r.code} {r.name}" for r in several))
        lines.append(f"- {escape_markdown(reason)}: {names}")
    if lines:
        yield _section(title, lines, is_open=is_open)


def _section(title: str, lines: list[str], *, is_open: bool = False) -> str:
    """Return a list under a heading, or folded, where it is long and seldom read."""
    if is_open:
        return "\n".join([f"## {title}", "", *lines])
    head = f"<details><summary>{title} ({len(lines)})</summary>"
    return "\n".join([head, "", *lines, "", "</details>"])
