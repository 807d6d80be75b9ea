"""A matrix that has ended, in a terminal: the verdict, and what failed."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from harness.findings import Status
from harness.results import CellResult, MatrixResult
from reports.audit_text import list_working, summarise_audit
from reports.coverage_text import summarise_coverage
from reports.matrix_summary import (
    describe_kept,
    describe_smallest,
    describe_verdict,
    list_failures,
    make_row,
    repro_command,
)
from reports.text import clean_lines

COLOURS = {
    Status.PASSED: "green",
    Status.FAILED: "red",
    Status.SKIPPED: "dim",
    Status.CRASHED: "bold magenta",
}
"""Colour of each ending; the words alone carry the meaning."""


def print_verdict(console: Console, matrix: MatrixResult, report: str, *, quiet: bool) -> None:
    """Print how the matrix ended, what failed with the command that repeats it, and the report."""
    if not quiet:
        console.print()
        for found in matrix.smallest:
            text = clean_lines("\n".join(describe_smallest(found)))
            console.print(Text(text, style="bold"), soft_wrap=True)
        for cell in list_failures(matrix):
            _print_failure(console, matrix, cell)
        if describe_kept(matrix):
            console.print(describe_kept(matrix), soft_wrap=True, highlight=False)
    if matrix.audit:
        lines = [summarise_audit(matrix.audit), *(f"  {one}" for one in list_working(matrix.audit))]
        console.print(Text(clean_lines("\n".join(lines))), soft_wrap=True)
    if matrix.coverage is not None:
        console.print(Text(summarise_coverage(matrix.coverage)), soft_wrap=True)
    colour = COLOURS[matrix.verdict]
    console.print(
        Text(f"{matrix.verdict}: {describe_verdict(matrix)}", style=colour), soft_wrap=True
    )
    console.print(f"report: {escape(report)}", soft_wrap=True, highlight=False)


def _print_failure(console: Console, matrix: MatrixResult, cell: CellResult) -> None:
    row = make_row(cell)
    # The message of a cell with findings is its first finding, which follows in full.
    message = "" if cell.findings else " ".join(clean_lines(cell.message).split())
    heading = Text(f"{row.number}. {row.name}: {row.outcome}", style=COLOURS[cell.status])
    console.print(heading, soft_wrap=True)
    lines = [f"   {message}"] if message else []
    for finding in cell.findings:
        lines.append(f"   {finding['code']} {finding['name']}: {finding['message']}")
        lines += [f"     fix: {finding['remedy']}"] if finding.get("remedy") else []
    lines.append(f"   again: {repro_command(matrix, [cell.name])}")
    console.print(Text(clean_lines("\n".join(lines))), soft_wrap=True)
