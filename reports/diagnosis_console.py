"""A diagnosis for a terminal: one line per area, then the findings, the verdict last."""

from __future__ import annotations

import textwrap

from harness.findings import Diagnosis, ProbeResult, Severity, Status, Verdict
from reports.diagnosis_summary import (
    AreaCount,
    count_areas,
    describe_subject,
    group_reasons,
)
from reports.text import SHOWN_EVIDENCE, clean, describe_evidence

_CODES = {"red": "31", "yellow": "33", "green": "32", "dim": "2", "bold": "1"}
_COLOURS = {
    Verdict.HEALTHY: "green",
    Verdict.SICK: "red",
    Verdict.UNKNOWN: "yellow",
    Severity.CRITICAL: "red",
    Severity.HIGH: "yellow",
    Severity.MEDIUM: "yellow",
    Severity.NOTE: "dim",
}
_MARKS = {
    Severity.CRITICAL: "x",
    Severity.HIGH: "!",
    Severity.MEDIUM: "-",
    Severity.NOTE: "i",
}
_SHOWN_SUBJECTS = 12
_SHOWN_CODES = 6
"""Codes named behind a reason; JSON and Markdown name all."""


def write_console(diagnosis: Diagnosis, *, width: int = 100, colour: bool = False) -> str:
    """Return the report as text; `colour` adds ANSI codes, nothing else changes."""
    page = _Page(width, colour)
    page.line(page.paint(clean(diagnosis.path), "bold"))
    subjects = diagnosis.facts.get("subjects", [])
    names = [clean(facts["subject"]) for facts in subjects[:_SHOWN_SUBJECTS]]
    room = max(12, *(len(name) + 2 for name in names)) if names else 0
    for name, facts in zip(names, subjects, strict=False):
        page.wrapped(f"  {name:<{room}}", describe_subject(facts))
    if len(subjects) > _SHOWN_SUBJECTS:
        page.line(f"  and {len(subjects) - _SHOWN_SUBJECTS} more")
    page.line("")
    for count in count_areas(diagnosis.probes):
        _write_area(page, count)
    for result in diagnosis.findings:
        _write_finding(page, result)
    crashed = [r for r in diagnosis.probes if r.status is Status.CRASHED]
    for result in crashed:
        page.line("")
        page.line(page.paint(f"? {_title(result)}", "yellow"))
        page.wrapped("    not known  ", clean(result.reason))
    unchecked = group_reasons(r for r in diagnosis.probes if r.is_unchecked)
    _write_unchecked(page, unchecked)
    page.line("")
    word = page.paint(diagnosis.verdict.upper(), _COLOURS[diagnosis.verdict], "bold")
    why = clean(diagnosis.why)
    why += " (see above)" if unchecked and diagnosis.verdict is Verdict.HEALTHY else ""
    page.wrapped("", f"{diagnosis.verdict.upper()} - {why}", replace=word)
    return page.text()


class _Page:
    """Lines of a report of a given width."""

    def __init__(self, width: int, colour: bool) -> None:
        self.width = width
        self.colour = colour
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        """Add a line as it is."""
        self.lines.append(text.rstrip())

    def wrapped(self, label: str, text: str, replace: str = "") -> None:
        """Add text behind a label, wrapped and indented below itself."""
        room = max(20, self.width - len(label))
        parts = textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=False) or [""]
        if replace:
            parts[0] = replace + parts[0][len(parts[0].split(" ", 1)[0]) :]
        for number, part in enumerate(parts):
            self.line((label if number == 0 else " " * len(label)) + part)

    def paint(self, text: str, *styles: str) -> str:
        """Return text in colour, when the page has any."""
        if not self.colour:
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"

    def text(self) -> str:
        """Return the whole page."""
        return "\n".join(self.lines) + "\n"


def _write_area(page: _Page, count: AreaCount) -> None:
    total = count.passed + count.findings + count.notes + count.crashed
    label = f"  {count.area:<12}"
    if not total and not count.unchecked:
        page.wrapped(f"{label}-     ", f"does not apply: {clean(count.reason)}")
        return
    if not total:
        page.line(f"{label}-     {count.unchecked} not checked")
        return
    parts = [f"{count.passed} passed"]
    parts += [f"{n} {word}" for n, word in _problems(count) if n]
    if count.findings:
        word = page.paint("SICK", "red")
    elif count.crashed:
        word = page.paint("?   ", "yellow")
    else:
        word = page.paint("ok  ", "green")
    page.line(f"{label}{word}  {', '.join(parts)}")


def _problems(count: AreaCount) -> list[tuple[int, str]]:
    return [
        (count.findings, "finding" if count.findings == 1 else "findings"),
        (count.notes, "note" if count.notes == 1 else "notes"),
        (count.crashed, "could not finish"),
        (count.unchecked, "not checked"),
    ]


def _write_unchecked(page: _Page, grouped: dict[str, list[ProbeResult]]) -> None:
    """Write one line for each reason why something was not checked."""
    if grouped:
        page.line("")
    for reason, results in grouped.items():
        codes = list(dict.fromkeys(result.code for result in results))
        more = f" and {len(codes) - _SHOWN_CODES} more" if len(codes) > _SHOWN_CODES else ""
        shown = ", ".join(codes[:_SHOWN_CODES]) + more
        page.wrapped("  not checked  ", f"{clean(reason)} [{shown}]")


def _title(result: ProbeResult) -> str:
    place = "" if result.subject == "." else f" in {clean(result.subject)}"
    modes = f" ({', '.join(result.modes)})" if result.modes else ""
    return f"{result.code} {result.name}{place}{modes}"


def _write_finding(page: _Page, result: ProbeResult) -> None:
    severity = result.severity or Severity.CRITICAL
    mark = _MARKS[severity]
    page.line("")
    page.line(page.paint(f"{mark} {severity}: {_title(result)}", _COLOURS[severity]))
    page.wrapped("    ", clean(result.message))
    for piece in result.evidence[:SHOWN_EVIDENCE]:
        page.wrapped("    seen     ", describe_evidence(piece))
    if len(result.evidence) > SHOWN_EVIDENCE:
        page.line(f"             and {len(result.evidence) - SHOWN_EVIDENCE} more")
    page.wrapped("    because  ", clean(result.cause))
    page.wrapped("    fix      ", clean(result.remedy))
    page.line(f"    explain  mudpuppy-doctor explain {result.code}")
