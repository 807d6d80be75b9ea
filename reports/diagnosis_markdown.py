"""A diagnosis in Markdown, for an issue or a run's folder."""

from __future__ import annotations

from harness.findings import Diagnosis, ProbeResult, Severity, Status
from reports.diagnosis_summary import count_areas, describe_subject, group_reasons
from reports.text import SHOWN_EVIDENCE, code_markdown, describe_evidence, escape_markdown


def write_markdown(diagnosis: Diagnosis) -> str:
    """Return the report; everything that comes from the checkpoint is escaped."""
    lines = [f"# {diagnosis.verdict.upper()}: {escape_markdown(diagnosis.path)}", ""]
    lines += [f"{escape_markdown(diagnosis.why)}.", ""]
    lines += [
        f"- `{code_markdown(facts['subject'])}`: {escape_markdown(describe_subject(facts))}"
        for facts in diagnosis.facts.get("subjects", [])
    ]
    lines += ["", *_table(diagnosis)]
    for result in diagnosis.findings:
        lines += ["", *_finding(result)]
    crashed = [result for result in diagnosis.probes if result.status is Status.CRASHED]
    lines += _reasons("Could not finish", crashed)
    lines += _reasons("Not checked", [r for r in diagnosis.probes if r.is_unchecked])
    lines += _reasons("Does not apply", [r for r in diagnosis.probes if not r.applies])
    return "\n".join(lines) + "\n"


def _table(diagnosis: Diagnosis) -> list[str]:
    rows = ["| area | passed | findings | notes | could not finish | not checked |"]
    rows.append("| --- | --: | --: | --: | --: | --: |")
    for count in count_areas(diagnosis.probes):
        cells = (count.passed, count.findings, count.notes, count.crashed, count.unchecked)
        rows.append(f"| {count.area} | {' | '.join(str(cell) for cell in cells)} |")
    return rows


def _finding(result: ProbeResult) -> list[str]:
    place = "" if result.subject == "." else f" in `{code_markdown(result.subject)}`"
    severity = result.severity or Severity.CRITICAL
    lines = [
        f"## {severity}: {result.code} {result.name}{place}",
        "",
        escape_markdown(result.message),
        "",
    ]
    lines += [
        f"- seen: {escape_markdown(describe_evidence(e))}" for e in result.evidence[:SHOWN_EVIDENCE]
    ]
    if len(result.evidence) > SHOWN_EVIDENCE:
        lines.append(f"- and {len(result.evidence) - SHOWN_EVIDENCE} more")
    lines += [
        f"- because: {escape_markdown(result.cause)}",
        f"- fix: {escape_markdown(result.remedy)}",
    ]
    return [*lines, f"- explain: `mudpuppy-doctor explain {result.code}`"]


def _reasons(title: str, results: list[ProbeResult]) -> list[str]:
    grouped = group_reasons(results)
    if not grouped:
        return []
    lines = ["", f"## {title}", ""]
    for reason, several in grouped.items():
        names = ", ".join(dict.fromkeys(f"{r.code} {r.name}" for r in several))
        lines.append(f"- {escape_markdown(reason)}: {names}")
    return lines
