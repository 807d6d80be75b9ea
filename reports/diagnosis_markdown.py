"""A diagnosis in Markdown, for an issue or a run's folder."""

from __future__ import annotations

import re

from harness.findings import Diagnosis, ProbeResult, Severity, Status
from reports.diagnosis_summary import (
    SHOWN_EVIDENCE,
    clean,
    count_areas,
    describe_evidence,
    describe_subject,
    explain_results,
)


def write_markdown(diagnosis: Diagnosis) -> str:
    """Return the report; everything that comes from the checkpoint is escaped."""
    lines = [f"# {diagnosis.verdict.upper()}: {_escape(diagnosis.path)}", ""]
    lines += [f"{_escape(diagnosis.why)}.", ""]
    lines += [
        f"- `{_code(facts['subject'])}`: {_escape(describe_subject(facts))}"
        for facts in diagnosis.facts.get("subjects", [])
    ]
    lines += ["", *_table(diagnosis)]
    for result in diagnosis.findings:
        lines += ["", *_finding(result)]
    for status, title in ((Status.CRASHED, "Could not finish"), (Status.SKIPPED, "Not checked")):
        lines += _reasons(diagnosis, status, title)
    return "\n".join(lines) + "\n"


def _table(diagnosis: Diagnosis) -> list[str]:
    rows = ["| area | passed | findings | notes | could not finish | did not apply |"]
    rows.append("| --- | --: | --: | --: | --: | --: |")
    for count in count_areas(diagnosis.probes):
        cells = (count.passed, count.findings, count.notes, count.crashed, count.skipped)
        rows.append(f"| {count.area} | {' | '.join(str(cell) for cell in cells)} |")
    return rows


def _finding(result: ProbeResult) -> list[str]:
    place = "" if result.subject == "." else f" in `{_code(result.subject)}`"
    severity = result.severity or Severity.ERROR
    lines = [f"## {severity}: {result.code} {result.name}{place}", "", _escape(result.message), ""]
    lines += [f"- seen: {_escape(describe_evidence(e))}" for e in result.evidence[:SHOWN_EVIDENCE]]
    if len(result.evidence) > SHOWN_EVIDENCE:
        lines.append(f"- and {len(result.evidence) - SHOWN_EVIDENCE} more")
    lines += [f"- because: {_escape(result.cause)}", f"- fix: {_escape(result.remedy)}"]
    return [*lines, f"- explain: `mudpuppy-doctor explain {result.code}`"]


def _reasons(diagnosis: Diagnosis, status: Status, title: str) -> list[str]:
    grouped = explain_results(diagnosis, status)
    if not grouped:
        return []
    lines = ["", f"## {title}", ""]
    for reason, results in grouped.items():
        names = ", ".join(dict.fromkeys(f"{r.code} {r.name}" for r in results))
        lines.append(f"- {_escape(reason)}: {names}")
    return lines


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", clean(text))


def _code(text: str) -> str:
    return clean(text).replace("`", "'")
