"""A diagnosis for a terminal: the verdict first, then what is wrong, unknown, and checked."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from harness.findings import Diagnosis, ProbeResult, Severity, Status, Verdict
from reports.diagnosis_summary import (
    AREAS,
    AreaCount,
    Group,
    count_areas,
    count_endings,
    group_findings,
    group_reasons,
    group_subjects,
    list_answers,
    name_repair,
)
from reports.text import SHOWN_EVIDENCE, clean, describe_evidence

_CODES = {"red": "31", "yellow": "33", "green": "32", "dim": "2", "bold": "1"}
_COLOURS = {
    Verdict.HEALTHY: "green",
    Verdict.SICK: "red",
    Verdict.UNKNOWN: "yellow",
    Verdict.NO_WORSE: "yellow",
    Severity.CRITICAL: "red",
    Severity.HIGH: "yellow",
    Severity.MEDIUM: "yellow",
    Severity.NOTE: "dim",
}
_SHOWN_SUBJECTS = 12
_SHOWN_CODES = 6
"""Codes named behind a reason; the other formats name all."""
_SHOWN_PLACES = 4
"""Other subjects that are named for one finding."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """The signs at the beginning of lines."""

    severities: tuple[str, str, str, str]
    """Critical, high, medium, note."""
    good: str
    """Passed."""
    unknown: str
    """Could not be checked."""
    absent: str
    """Was not looked at."""


UNICODE = Marks(severities=("✗", "!", "-", "i"), good="✓", unknown="?", absent="–")
ASCII = Marks(severities=("x", "!", "-", "i"), good="+", unknown="?", absent=".")


def write_console(
    diagnosis: Diagnosis, *, width: int = 100, colour: bool = False, marks: Marks = UNICODE
) -> str:
    """Return the report as text; `colour` adds ANSI codes, nothing else changes."""
    page = _Page(width, colour, marks)
    word = diagnosis.verdict.upper()
    said = f"{word} - {clean(diagnosis.path)}: {clean(diagnosis.why)}"
    page.wrapped("", said, paint=(word, _COLOURS[diagnosis.verdict], "bold"))
    _write_subjects(page, diagnosis)
    for group in group_findings(diagnosis):
        _write_group(page, group, name_repair(diagnosis, group.finding.code))
    _write_settled(page, diagnosis)
    _write_unknown(page, diagnosis)
    page.heading("checked")
    for count in count_areas(diagnosis.probes):
        _write_area(page, count)
        if count.area == AREAS["6"]:
            _write_answers(page, diagnosis)
    _write_end(page, diagnosis)
    return page.text()


class _Page:
    """Lines of a report of a given width."""

    def __init__(self, width: int, colour: bool, marks: Marks) -> None:
        self.width = width
        self.colour = colour
        self.marks = marks
        self.lines: list[str] = []

    def line(self, text: str = "") -> None:
        """Add a line as it is."""
        self.lines.append(text.rstrip())

    def heading(self, text: str) -> None:
        """Add a heading after an empty line."""
        self.line()
        self.line(self.paint(text, "bold"))

    def wrapped(self, label: str, text: str, paint: Sequence[str] = ()) -> None:
        """Add text behind a label, wrapped and indented below itself.

        Args:
            label: what stands before the first line.
            text: the text.
            paint: what is painted where it occurs first, and how.
        """
        room = max(20, self.width - len(label))
        parts = textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=False) or [""]
        for number, part in enumerate(parts):
            line = (label if number == 0 else " " * len(label)) + part
            if paint and number == 0:
                line = line.replace(paint[0], self.paint(*paint), 1)
            self.line(line)

    def paint(self, text: str, *styles: str) -> str:
        """Return text in colour, when the page has any."""
        if not self.colour:
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"

    def text(self) -> str:
        """Return the whole page."""
        return "\n".join(self.lines) + "\n"


def _write_subjects(page: _Page, diagnosis: Diagnosis) -> None:
    grouped = group_subjects(diagnosis)
    for names, text in grouped[:_SHOWN_SUBJECTS]:
        page.wrapped("  ", text if len(grouped) == len(names) == 1 else f"{_places(names)}: {text}")
    if len(grouped) > _SHOWN_SUBJECTS:
        page.line(f"  and {len(grouped) - _SHOWN_SUBJECTS} more")


def _write_group(page: _Page, group: Group, command: str) -> None:
    result = group.finding
    severity = result.severity or Severity.CRITICAL
    mark = page.marks.severities[list(Severity).index(severity)]
    page.line()
    title = f"{mark} {severity}: {_title(result)}"
    page.wrapped("", title, paint=(title.partition(" (")[0], _COLOURS[severity]))
    page.wrapped("    ", clean(result.message))
    for piece in result.evidence[:SHOWN_EVIDENCE]:
        page.wrapped("    seen     ", describe_evidence(piece))
    if len(result.evidence) > SHOWN_EVIDENCE:
        page.line(f"             and {len(result.evidence) - SHOWN_EVIDENCE} more")
    if group.elsewhere:
        page.wrapped("    also in  ", _places(group.elsewhere))
    page.wrapped("    because  ", clean(result.cause))
    page.wrapped("    fix      ", clean(result.remedy), paint=("fix", "bold"))
    if command:
        page.wrapped("    mend     ", command, paint=("mend", "bold"))
    for other in group.consequences:
        also = f" (also in {_places(other.elsewhere)})" if other.elsewhere else ""
        said = clean(other.finding.message)
        page.wrapped("    explains ", f"{_title(other.finding)}{also}: {said}")
    page.wrapped("    more     ", f"mudpuppy-doctor explain {result.code}")


def _places(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_PLACES} more" if len(names) > _SHOWN_PLACES else ""
    return ", ".join(clean(name) for name in names[:_SHOWN_PLACES]) + more


def _title(result: ProbeResult) -> str:
    place = "" if result.subject == "." else f" in {clean(result.subject)}"
    modes = f" ({', '.join(result.modes)})" if result.modes else ""
    return f"{result.code} {result.name}{place}{modes}"


def _write_settled(page: _Page, diagnosis: Diagnosis) -> None:
    """Write what does not count: accepted findings, known ones, and those that are gone."""
    accepted = [result for result in diagnosis.findings if result.accepted]
    known = [result for result in diagnosis.findings if result.is_known and not result.accepted]
    if accepted:
        page.heading("accepted")
    for result in accepted:
        said = f"{result.severity} {_title(result)}: {clean(result.message)}"
        page.wrapped("  ", f"{said} (accepted: {clean(result.accepted)})")
    if known:
        page.heading("known from the baseline")
    for result in known:
        page.wrapped("  ", f"{result.severity} {_title(result)}: {clean(result.message)}")
    if diagnosis.fixed:
        page.heading("gone since the baseline")
    for one in diagnosis.fixed:
        place = "" if one.subject == "." else f" in {clean(one.subject)}"
        page.wrapped(
            f"  {page.marks.good} ",
            f"{clean(one.code)} {clean(one.name)}{place}: {clean(one.message)}",
        )


def _write_unknown(page: _Page, diagnosis: Diagnosis) -> None:
    """Write what crashed, and one line for each reason why something was not checked."""
    crashed = [r for r in diagnosis.probes if r.status is Status.CRASHED]
    grouped = group_reasons(r for r in diagnosis.probes if r.is_unchecked)
    if crashed or grouped:
        page.heading("could not be checked")
    for reason, results in group_reasons(crashed).items():
        places = list(dict.fromkeys(result.subject for result in results))
        place = "" if places == ["."] else f" in {_places(places)}"
        title, codes = f"{results[0].code} {results[0].name}", ""
        if len(results) > 1:  # one cause: a model that could not be asked fails all its probes
            title, codes = f"{len(results)} checks", f" [{_codes(results)}]"
        text = f"{title}{place} could not finish: {clean(reason)}{codes}"
        page.wrapped(f"  {page.marks.unknown} ", text, paint=(title, "yellow"))
    for reason, results in grouped.items():
        page.wrapped(f"  {page.marks.absent} ", f"{clean(reason)} [{_codes(results)}]")


def _codes(results: Sequence[ProbeResult]) -> str:
    codes = list(dict.fromkeys(result.code for result in results))
    more = f" and {len(codes) - _SHOWN_CODES} more" if len(codes) > _SHOWN_CODES else ""
    return ", ".join(codes[:_SHOWN_CODES]) + more


def _write_area(page: _Page, count: AreaCount) -> None:
    parts = [(count.passed, "passed"), (count.findings, _plural(count.findings, "finding"))]
    parts += [(count.notes, _plural(count.notes, "note")), (count.settled, "accepted or known")]
    parts += [(count.crashed, "could not finish"), (count.unchecked, "not checked")]
    text = ", ".join(f"{number} {word}" for number, word in parts if number)
    mark, colour = page.marks.absent, "dim"
    if count.findings:
        mark, colour = page.marks.severities[0], "red"
    elif count.crashed:
        mark, colour = page.marks.unknown, "yellow"
    elif count.passed:
        mark, colour = page.marks.good, "green"
    label = f"  {mark} {count.area:<11}  "
    paint = (mark, colour)
    page.wrapped(label, text or f"does not apply: {clean(count.reason)}", paint=paint)


def _write_answers(page: _Page, diagnosis: Diagnosis) -> None:
    """Write how each model that was asked answered: passed or not, the scores are of interest."""
    for subject, scores in list_answers(diagnosis)[:_SHOWN_SUBJECTS]:
        place = "" if subject == "." else f"{clean(subject)}: "
        page.wrapped(f"    {'':<11}  ", f"{place}{clean(scores)}")


def _plural(number: int, word: str) -> str:
    return word if number == 1 else f"{word}s"


def _write_end(page: _Page, diagnosis: Diagnosis) -> None:
    page.line()
    for remark in diagnosis.remarks:
        page.wrapped("settings: ", clean(remark))
    parts = [f"{number:,} {word}" for number, word in count_endings(diagnosis)]
    if diagnosis.seconds:
        parts.append(f"{diagnosis.seconds:.1f} s")
    parts.append(f"exit code {diagnosis.exit_code}")
    # Once more, as the beginning of a long report is out of sight in the end.
    word = diagnosis.verdict.upper()
    painted = (word, _COLOURS[diagnosis.verdict], "bold")
    page.wrapped("", f"{word}: {', '.join(parts)}", paint=painted)
