"""A matrix in Markdown: `report.md`, the verdict first, then every failure with what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from harness.findings import Evidence
from harness.results import CellResult, MatrixResult
from reports.audit_text import list_working, summarise_audit
from reports.coverage_text import summarise_coverage
from reports.matrix_summary import (
    describe_kept,
    describe_outcome,
    describe_smallest,
    describe_verdict,
    list_failures,
    list_not_run,
    list_rejections,
    list_rows,
    repro_command,
)
from reports.text import (
    SHOWN_EVIDENCE,
    clean_lines,
    code_markdown,
    describe_evidence,
    escape_markdown,
)


def write_markdown(matrix: MatrixResult) -> str:
    """Return the report; everything that comes from a cell is escaped."""
    lines = [f"# Pressure matrix {escape_markdown(matrix.name)}: {matrix.verdict}", ""]
    lines += [describe_verdict(matrix), *_notes(matrix), *_smallest(matrix), "", *_cells(matrix)]
    failures = list_failures(matrix)
    if failures:
        lines += ["", "## Failures"]
    for cell in failures:
        lines += ["", *_failure(matrix, cell)]
    lines += [*_rejections(matrix), *_audit(matrix), *_coverage(matrix), *_not_run(matrix)]
    lines += ["", *_environment(matrix)]
    return "\n".join(lines) + "\n"


def _notes(matrix: MatrixResult) -> list[str]:
    """Return what a reader must know before trusting the verdict."""
    notes = []
    if matrix.plant:
        notes.append(f"The bug `{code_markdown(matrix.plant)}` was planted on purpose.")
    if matrix.model:
        notes.append(f"Every cell used the model `{code_markdown(matrix.model)}`.")
    if describe_kept(matrix):
        notes.append(escape_markdown(describe_kept(matrix)))
    return [line for note in notes for line in ("", note)]


def _smallest(matrix: MatrixResult) -> list[str]:
    """Return what failing cells were shrunk to."""
    if not matrix.smallest:
        return []
    lines = ["", "## Smallest failing combinations"]
    for found in matrix.smallest:
        first, *others = describe_smallest(found)
        lines += ["", f"**{escape_markdown(first)}**", ""]
        lines += [f"- {escape_markdown(line.strip())}" for line in others]
    return lines


def _cells(matrix: MatrixResult) -> list[str]:
    rows = [
        (
            row.number,
            f"`{code_markdown(row.name)}`",
            escape_markdown(row.title),
            row.outcome,
            row.loss,
            row.time,
            _folder(row.folder),
        )
        for row in list_rows(matrix)
    ]
    columns = ("#", "cell", "what", "outcome", "loss", "time", "folder")
    return _table(columns, rows, ("right",))


def _audit(matrix: MatrixResult) -> list[str]:
    """Return what the forced rejections came to: advice, and no failures."""
    if not matrix.audit:
        return []
    works = [f"- {escape_markdown(line)}" for line in list_working(matrix.audit)]
    lines = [
        "",
        "## Rejections that were forced",
        "",
        escape_markdown(summarise_audit(matrix.audit)),
    ]
    return [*lines, *([""] if works else []), *works]


def _coverage(matrix: MatrixResult) -> list[str]:
    """Return which features meet in the cells that ran."""
    if matrix.coverage is None:
        return []
    missing = [f"- missing: {escape_markdown(words)}" for words in matrix.coverage["missing"]]
    lines = ["", "## Coverage", "", escape_markdown(summarise_coverage(matrix.coverage))]
    return [*lines, *([""] if missing else []), *missing]


def _folder(name: str) -> str:
    return f"[{name}]({name}/)" if name else ""


def _failure(matrix: MatrixResult, cell: CellResult) -> list[str]:
    """Return everything that is known of a cell that did not come out as expected."""
    heading = f"### {cell.number}. {escape_markdown(cell.title)}: {describe_outcome(cell.outcome)}"
    lines = [heading, "", escape_markdown(cell.message), ""]
    lines += [f"- expected: {escape_markdown(_expectation(cell))}"]
    if cell.worker is not None:
        memory = cell.worker.peak_rss_bytes / 2**20
        lines.append(f"- worker: {cell.worker.words}, at most {memory:.0f} MiB of memory")
    if cell.attempt > 1:
        lines.append(f"- attempt: {cell.attempt}")
    lines.append(f"- again: `{code_markdown(repro_command(matrix, [cell.name]))}`")
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
    place = "" if subject == "." else f" in `{code_markdown(str(subject))}`"
    severity, code = finding.get("severity") or "critical", escape_markdown(str(finding["code"]))
    name, message = escape_markdown(str(finding["name"])), escape_markdown(str(finding["message"]))
    evidence = finding.get("evidence", ())
    lines = [
        f"- seen: {escape_markdown(describe_evidence(Evidence(**one)))}"
        for one in evidence[:SHOWN_EVIDENCE]
    ]
    if len(evidence) > SHOWN_EVIDENCE:
        lines.append(f"- and {len(evidence) - SHOWN_EVIDENCE} more")
    lines += (
        [f"- because: {escape_markdown(str(finding['cause']))}"] if finding.get("cause") else []
    )
    lines += [f"- fix: {escape_markdown(str(finding['remedy']))}"] if finding.get("remedy") else []
    heading = f"**{severity}: {code} {name}**{place}: {message}"
    return [heading, "", *lines] if lines else [heading]


def _rejections(matrix: MatrixResult) -> list[str]:
    cells = list_rejections(matrix)
    if not cells:
        return []
    rows = [
        (
            str(cell.number),
            escape_markdown(cell.title),
            str(cell.expect.get("code")),
            escape_markdown(cell.message),
        )
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
        names = ", ".join(f"`{code_markdown(cell.name)}`" for cell in cells)
        lines.append(f"- {escape_markdown(reason)}: {names}")
    return lines


def _environment(matrix: MatrixResult) -> list[str]:
    names = dict.fromkeys(cell.name for cell in matrix.cells if cell.worker)
    lines = ["## Environment", "", f"- scenarios: `{code_markdown(matrix.matrix)}`"]
    lines += [f"- started {matrix.started}, finished {matrix.finished}"]
    shown = {key: value for key, value in matrix.environment.items() if value is not None}
    lines += [
        f"- {escape_markdown(key)}: {escape_markdown(str(value))}" for key, value in shown.items()
    ]
    if names:
        lines.append(f"- run all of it: `{code_markdown(repro_command(matrix, []))}`")
    return lines


def _table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], align: Sequence[str]
) -> list[str]:
    """Return a pipe table; tabulate must not take cell names for numbers."""
    text = tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=align)
    return text.splitlines()


def _fence(text: str) -> list[str]:
    """Return text in a fence that it cannot close."""
    ticks = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return [f"{fence}text", *clean_lines(text).splitlines(), fence]
