"""A diagnosis as workflow commands of GitHub: ten annotations, and more for what is critical."""

from __future__ import annotations

from collections.abc import Iterable

from harness.findings import Diagnosis, ProbeResult, Severity
from reports.diagnosis_summary import Group, group_findings
from reports.text import clean

MOST = 10
"""Annotations that GitHub shows for one step; critical ones beyond stand in its log."""
COMMANDS = {Severity.CRITICAL: "error", Severity.HIGH: "error", Severity.MEDIUM: "warning"}


def write_github(diagnosis: Diagnosis) -> str:
    """Return lines for the verdict, each finding that stands alone, and each critical one."""
    groups = group_findings(diagnosis)
    lines = [f"{diagnosis.verdict.upper()} - {clean(diagnosis.path)}: {clean(diagnosis.why)}"]
    shown = [group.finding for group in groups[:MOST]]
    shown += [one for one in _list_critical(groups) if all(one is not other for other in shown)]
    for one in shown:
        command = COMMANDS.get(one.severity or Severity.CRITICAL, "notice")
        title = _property(f"{one.code} {one.name}")
        follows = f" (follows from {one.caused_by})" if one.caused_by else ""
        said = _data(f"{one.message}{follows}. Fix: {one.remedy}")
        lines.append(f"::{command} title={title}::{said}")
    # The old form of a command is obeyed anywhere in a line, also in the name of a file.
    return "\n".join(lines).replace("##[", "# #[") + "\n"


def _list_critical(groups: Iterable[Group]) -> list[ProbeResult]:
    """Return the critical findings, also those that others explain."""
    found = []
    for group in groups:
        if group.finding.severity is Severity.CRITICAL:
            found.append(group.finding)
        found += _list_critical(group.consequences)
    return found


def _data(text: str) -> str:
    return clean(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
