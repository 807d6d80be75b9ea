"""A diagnosis as workflow commands of GitHub: at most ten annotations, the worst first."""

from __future__ import annotations

from harness.findings import Diagnosis, Severity
from reports.diagnosis_summary import group_findings
from reports.text import clean

MOST = 10
"""Annotations that GitHub shows for one step."""
COMMANDS = {Severity.CRITICAL: "error", Severity.HIGH: "error", Severity.MEDIUM: "warning"}


def write_github(diagnosis: Diagnosis) -> str:
    """Return one line for the verdict, and one for each finding that stands alone."""
    groups = group_findings(diagnosis)
    lines = [f"{diagnosis.verdict.upper()} - {clean(diagnosis.path)}: {clean(diagnosis.why)}"]
    for group in groups[:MOST]:
        one = group.finding
        command = COMMANDS.get(one.severity or Severity.CRITICAL, "notice")
        title = _property(f"{one.code} {one.name}")
        lines.append(f"::{command} title={title}::{_data(f'{one.message}. Fix: {one.remedy}')}")
    # The old form of a command is obeyed anywhere in a line, also in the name of a file.
    return "\n".join(lines).replace("##[", "# #[") + "\n"


def _data(text: str) -> str:
    return clean(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
