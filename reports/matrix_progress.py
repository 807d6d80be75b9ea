"""A matrix while it runs: a live table or a summary on a terminal, plain lines on a pipe."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.findings import Status
from harness.results import CellLabel, CellResult, Event, Finished
from reports.matrix_console import COLOURS
from reports.matrix_summary import describe_outcome, make_row
from reports.text import clean_lines

LONGEST_TABLE = 20
"""Cells of a matrix that is shown whole; of a longer one, what runs and what failed."""
MOST_LINES = 300
"""Cells of a matrix that has a line for each on a pipe; a longer one has one now and then."""
LINE_EVERY_S = 30.0
"""Seconds between two such lines."""
SHOWN_FAILURES = 8
"""Failures under a long matrix, the newest."""
ENOUGH = 5
"""Cells that must have ended before the time of unknown ones is guessed."""
BAR_WIDTH = 30


class Progress:
    """Shows a running matrix."""

    def __init__(
        self,
        console: Console,
        cells: Sequence[CellLabel],
        *,
        quiet: bool = False,
        durations: Mapping[str, float] | None = None,
        jobs: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; `with` shows it.

        Args:
            console: where to show it.
            cells: every cell of the matrix, also those that do not run.
            quiet: show nothing.
            durations: seconds that cells took before, by id, to say when it will be done.
            jobs: cells at a time.
            clock: tells the seconds.
        """
        self._console = console
        self._cells = {cell.cell_id: cell for cell in cells}
        self._quiet = quiet
        self._durations = durations or {}
        self._jobs = jobs
        self._clock = clock
        self._begun_s = self._said_s = clock()
        self._results: dict[str, CellResult] = {}
        self._kept: set[str] = set()
        self._left_out: set[str] = set()
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
        if not isinstance(event, Finished):
            self._started_s[event.cell_id] = self._clock()
            return
        result = event.result
        self._results[result.cell_id] = result
        self._started_s.pop(result.cell_id, None)
        if event.kept:
            self._kept.add(result.cell_id)
        if event.kept and result.worker is None:
            self._left_out.add(result.cell_id)
        elif self._live is None and not self._quiet:
            self._print(result, event.kept)

    def _print(self, result: CellResult, kept: bool) -> None:
        """Print a line for the cell, or for all of them when it is time."""
        is_bad = result.status in (Status.FAILED, Status.CRASHED)
        if len(self._cells) <= MOST_LINES or (is_bad and not kept):
            self._print_cell(result, kept)
        elif self._clock() - self._said_s >= LINE_EVERY_S:
            self._said_s = self._clock()
            self._console.print(self._describe(), soft_wrap=True, highlight=False)

    def _print_cell(self, result: CellResult, kept: bool) -> None:
        row = make_row(result)
        done, total = self._numbers()
        parts = [f"{done:>{len(str(total))}}/{total}  {row.outcome:<21} {row.name}"]
        parts += [f"loss {row.loss}"] if row.loss else []
        parts += [row.time] if row.time else []
        parts += ["kept"] if kept and row.time else []
        is_bad = result.status in (Status.FAILED, Status.CRASHED, Status.SKIPPED)
        parts += [" ".join(clean_lines(result.message).split())] if is_bad else []
        self._console.print(
            Text("  ".join(parts), style=COLOURS[result.status]), soft_wrap=True, highlight=False
        )

    def _numbers(self) -> tuple[int, int]:
        """Return how many of the cells that run are done, and how many they are."""
        return len(self._results) - len(self._left_out), len(self._cells) - len(self._left_out)

    def _describe(self) -> Text:
        """Return the state of the whole in one line: counts by ending, running, time."""
        done, total = self._numbers()
        outcomes = Counter(
            (result.outcome, result.status)
            for cell_id, result in self._results.items()
            if cell_id not in self._left_out
        )
        line = Text(f"{done}/{total}")
        for (outcome, status), number in outcomes.most_common():
            line.append("  ").append(f"{number} {describe_outcome(outcome)}", COLOURS[status])
        new = len(self._kept) - len(self._left_out)
        line.append(f" ({new} kept)" if new else "")
        line.append(f"  {len(self._started_s)} running" if self._started_s else "")
        line.append(f"  {describe_seconds(self._clock() - self._begun_s)}")
        left = self.seconds_left()
        line.append(f", about {describe_seconds(left)} left" if left else "")
        return line

    def seconds_left(self) -> float | None:
        """Return how long it will take still, or None while there is nothing to go by.

        A cell takes what it took before, an unknown one as long as those of this run on average.
        """
        waiting = [one for one in self._cells if one not in self._results]
        unknown = sum(one not in self._durations for one in waiting)
        seen = [
            result.worker.wall_s
            for cell_id, result in self._results.items()
            if result.worker is not None and cell_id not in self._kept
        ]
        if unknown and len(seen) < ENOUGH:
            return None
        work = sum(self._durations.get(one, 0.0) for one in waiting)
        work += unknown * sum(seen) / max(1, len(seen))
        now = self._clock()
        work -= sum(now - begun for begun in self._started_s.values())
        return max(0.0, work / self._jobs)

    def __rich__(self) -> RenderableType:
        """Return what a terminal shows now; rich asks several times a second."""
        if len(self._cells) <= LONGEST_TABLE:
            return Group(self._table(list(self._cells.values())), self._describe())
        done, total = self._numbers()
        bar = Table.grid()  # alone, a bar does not end its line
        bar.add_row(ProgressBar(total=max(1, total), completed=done, width=BAR_WIDTH))
        running = [self._cells[one] for one in self._started_s if one in self._cells]
        failed = [
            self._cells[result.cell_id]
            for result in self._results.values()
            if result.status in (Status.FAILED, Status.CRASHED) and result.cell_id in self._cells
        ]
        rows = [*failed[-SHOWN_FAILURES:], *running]
        more = len(failed) - SHOWN_FAILURES
        parts: list[RenderableType] = [bar, self._describe()]
        parts += [self._table(rows)] if rows else []
        parts += [Text(f"and {more} failures before", style="dim")] if more > 0 else []
        return Group(*parts)

    def _table(self, cells: Sequence[CellLabel]) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("#", justify="right")
        table.add_column("cell", overflow="fold", ratio=None)
        table.add_column("outcome", no_wrap=True)
        table.add_column("loss", no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True)
        for cell in cells:
            table.add_row(*self._row(cell))
        return table

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
        elapsed = f"{self._clock() - started:.0f} s"
        return number, title, Text("running", style="cyan"), Text(), Text(elapsed)


def describe_seconds(seconds: float) -> str:
    """Return a time as a person says it: `40 s`, `12 min`, `3 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
