"""A matrix in Markdown: `report.md`, the verdict first, then every failure with what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from harness.results import CellResult, MatrixResult
from reports.matrix_summary import (
    clean_text,
    describe_kept,
    describe_outcome,
    describe_verdict,
    list_failures,
    list_not_run,
    list_rejections,
    list_rows,
    repro_command,
)

SHOWN_EVIDENCE = 5
"""Pieces of evidence shown for one finding."""


def write_markdown(matrix: MatrixResult) -> str:
    """Return the report; everything that comes from a cell is escaped."""
    lines = [f"# Pressure matrix {_escape(matrix.name)}: {matrix.verdict}", ""]
    lines += [describe_verdict(matrix), *_notes(matrix), "", *_cells(matrix)]
    failures = list_failures(matrix)
    if failures:
        lines += ["", "## Failures"]
    for cell in failures:
        lines += ["", *_failure(matrix, cell)]
    lines += [*_rejections(matrix), *_not_run(matrix), "", *_environment(matrix)]
    return "\n".join(lines) + "\n"


def _notes(matrix: MatrixResult) -> list[str]:
    """Return what a reader must know before trusting the verdict."""
    notes = []
    if matrix.plant:
        notes.append(f"The bug `{_code(matrix.plant)}` was planted on purpose.")
    if matrix.model:
        notes.append(f"Every cell used the model `{_code(matrix.model)}`.")
    if describe_kept(matrix):
        notes.append(_escape(describe_kept(matrix)))
    return [line for note in notes for line in ("", note)]


def _cells(matrix: MatrixResult) -> list[str]:
    rows = [
        (row.number, _escape(row.title), row.outcome, row.loss, row.time, _folder(row.folder))
        for row in list_rows(matrix)
    ]
    return _table(("#", "cell", "outcome", "loss", "time", "folder"), rows, ("right",))


def _folder(name: str) -> str:
    return f"[{name}]({name}/)" if name else ""


def _failure(matrix: MatrixResult, cell: CellResult) -> list[str]:
    """Return everything that is known of a cell that did not come out as expected."""
    heading = f"### {cell.number}. {_escape(cell.title)}: {describe_outcome(cell.outcome)}"
    lines = [heading, "", _escape(cell.message), ""]
    lines += [f"- expected: {_escape(_expectation(cell))}"]
    if cell.worker is not None:
        memory = cell.worker.peak_rss_bytes / 2**20
        lines.append(f"- worker: {cell.worker.words}, at most {memory:.0f} MiB of memory")
    if cell.attempt > 1:
        lines.append(f"- attempt: {cell.attempt}")
    lines.append(f"- again: `{_code(repro_command(matrix, [cell.name]))}`")
    for finding in cell.findings:
        lines += ["", *_finding(finding)]
    if cell.log_tail:
        lines += ["", f"End of [output.log]({cell.cell_id}/output.log):", ""]
        lines += _fence(cell.log_tail)
    return lines


def _expectation(cell: CellResult) -> str:
    expect = cell.expect
    words = [str(expect.get("outcome"))]
    words += [f"with {expect['code']}"] if expect.get("code") else []
    words += ["stopping early"] if expect.get("stops_early") else []
    words += [f"with findings {' '.join(expect['findings'])}"] if expect.get("findings") else []
    return " ".join(words)


def _finding(finding: dict[str, Any]) -> list[str]:
    """Return one failed probe: what, how it is known, why, what to do."""
    subject = finding.get("subject", ".")
    place = "" if subject == "." else f" in `{_code(str(subject))}`"
    severity, code = finding.get("severity") or "error", _escape(str(finding["code"]))
    name, message = _escape(str(finding["name"])), _escape(str(finding["message"]))
    evidence = finding.get("evidence", ())
    lines = [f"- seen: {_escape(_evidence(one))}" for one in evidence[:SHOWN_EVIDENCE]]
    if len(evidence) > SHOWN_EVIDENCE:
        lines.append(f"- and {len(evidence) - SHOWN_EVIDENCE} more")
    lines += [f"- because: {_escape(str(finding['cause']))}"] if finding.get("cause") else []
    lines += [f"- fix: {_escape(str(finding['remedy']))}"] if finding.get("remedy") else []
    heading = f"**{severity}: {code} {name}**{place}: {message}"
    return [heading, "", *lines] if lines else [heading]


def _evidence(one: dict[str, Any]) -> str:
    place = " ".join(str(one[key]) for key in ("file", "tensor") if one.get(key))
    text = f"{one['what']} ({place})" if place else str(one["what"])
    if one.get("found") is not None:
        text += f": {one['found']}"
    if one.get("expected") is not None:
        text += f", expected {one['expected']}"
    return text


def _rejections(matrix: MatrixResult) -> list[str]:
    cells = list_rejections(matrix)
    if not cells:
        return []
    rows = [
        (str(cell.number), _escape(cell.title), str(cell.expect.get("code")), _escape(cell.message))
        for cell in cells
    ]
    table = _table(("#", "cell", "code", "what happened"), rows, ("right",))
    return ["", "## Rejected, as expected", "", *table]


def _not_run(matrix: MatrixResult) -> list[str]:
    grouped = list_not_run(matrix)
    if not grouped:
        return []
    lines = ["", "## Did not run", ""]
    for reason, cells in grouped.items():
        names = ", ".join(f"`{_code(cell.name)}`" for cell in cells)
        lines.append(f"- {_escape(reason)}: {names}")
    return lines


def _environment(matrix: MatrixResult) -> list[str]:
    names = dict.fromkeys(cell.name for cell in matrix.cells if cell.worker)
    lines = ["## Environment", "", f"- scenarios: `{_code(matrix.matrix)}`"]
    lines += [f"- started {matrix.started}, finished {matrix.finished}"]
    shown = {key: value for key, value in matrix.environment.items() if value is not None}
    lines += [f"- {_escape(key)}: {_escape(str(value))}" for key, value in shown.items()]
    if names:
        lines.append(f"- run all of it: `{_code(repro_command(matrix, []))}`")
    return lines


def _table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], align: Sequence[str]
) -> list[str]:
    """Return a pipe table; tabulate must not take cell names for numbers."""
    text = tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=align)
    return text.splitlines()


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", " ".join(clean_text(text).split()))


def _code(text: str) -> str:
    return " ".join(clean_text(text).split()).replace("`", "'").replace("|", "\\|")


def _fence(text: str) -> list[str]:
    """Return text in a fence that it cannot close."""
    ticks = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return [f"{fence}text", *clean_text(text).splitlines(), fence]
