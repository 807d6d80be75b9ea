"""A matrix in a terminal: a table that fills while it runs, plain lines on a pipe, the verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness.findings import Status
from harness.results import CellLabel, CellResult, Event, Finished, MatrixResult
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
LONGEST_TABLE = 40
"""Rows that a live table may have; a longer matrix shows its newest rows."""


class Progress:
    """Shows a running matrix: a live table on a terminal, else one line per finished cell."""

    def __init__(
        self, console: Console, cells: Sequence[CellLabel], *, quiet: bool = False
    ) -> None:
        self._console = console
        self._cells = cells
        self._quiet = quiet
        self._results: dict[str, CellResult] = {}
        self._kept: set[str] = set()
        self._left_out = 0
        self._started_s: dict[str, float] = {}
        is_animated = console.is_terminal and not console.is_dumb_terminal and not quiet
        self._live = (
            Live(self, console=console, refresh_per_second=4, transient=False)
            if is_animated
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def on_event(self, event: Event) -> None:
        """Take note of an event and show it."""
        if isinstance(event, Finished):
            self._results[event.result.cell_id] = event.result
            if event.kept:
                self._kept.add(event.result.cell_id)
            is_left_out = event.kept and event.result.worker is None
            self._left_out += is_left_out
            if self._live is None and not self._quiet and not is_left_out:
                self._print_line(event.result, event.kept)
        else:
            self._started_s[event.cell_id] = time.monotonic()

    def _print_line(self, result: CellResult, kept: bool) -> None:
        row = make_row(result)
        total = len(self._cells) - self._left_out
        done = len(self._results) - self._left_out
        parts = [f"{done:>{len(str(total))}}/{total}  {row.outcome:<21} {row.name}"]
        parts += [f"loss {row.loss}"] if row.loss else []
        parts += [row.time] if row.time else []
        parts += ["kept"] if kept and row.time else []
        is_bad = result.status in (Status.FAILED, Status.CRASHED, Status.SKIPPED)
        parts += [" ".join(clean_lines(result.message).split())] if is_bad else []
        self._console.print(
            Text("  ".join(parts), style=COLOURS[result.status]), soft_wrap=True, highlight=False
        )

    def __rich__(self) -> Table:
        """Return the table as it is now; rich asks several times a second."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("#", justify="right")
        table.add_column("cell", overflow="fold", ratio=None)
        table.add_column("outcome", no_wrap=True)
        table.add_column("loss", no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True)
        for cell in self._shown():
            table.add_row(*self._row(cell))
        done = len(self._results)
        table.caption = f"{done} of {len(self._cells)} done"
        table.caption_justify = "left"
        return table

    def _shown(self) -> Sequence[CellLabel]:
        """Return the rows that fit: when they are many, the newest that have begun."""
        if len(self._cells) <= LONGEST_TABLE:
            return self._cells
        begun = [c for c in self._cells if c.cell_id in self._started_s | self._results]
        return begun[-LONGEST_TABLE:]

    def _row(self, cell: CellLabel) -> tuple[Text, ...]:
        number, title = Text(str(cell.number)), Text(clean_lines(cell.title))
        result = self._results.get(cell.cell_id)
        if result is not None:
            row = make_row(result)
            outcome = row.outcome + (" (kept)" if cell.cell_id in self._kept and row.time else "")
            colour = COLOURS[result.status]
            return number, title, Text(outcome, style=colour), Text(row.loss), Text(row.time)
        started = self._started_s.get(cell.cell_id)
        if started is None:
            return number, title, Text("waiting", style="dim"), Text(), Text()
        elapsed = f"{time.monotonic() - started:.0f} s"
        return number, title, Text("running", style="cyan"), Text(), Text(elapsed)


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
