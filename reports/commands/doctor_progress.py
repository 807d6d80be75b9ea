"""What the doctor shows while it works: on a terminal alone, and only when it takes a while."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from reports.text import clean

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE_S = 0.7
"""Seconds without a word; most examinations are over by then, and rich is never imported."""


class ScanProgress:
    """One line that says what is being done, with a bar while weights are read.

    Anything that is not a terminal is shown nothing: what is piped is the report.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare; `with` removes the line in the end.

        Args:
            stream: where to show it.
            clock: tells the seconds.
        """
        self._stream = stream
        self._clock = clock
        self._is_shown = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._begun_s = clock()
        self._text = "examining"
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Show one line about what begins."""
        self._text = clean(text)
        if self._is_late() and (bar := self._open()) is not None:
            bar.update(self._new_task(None), description=self._text)

    def scanned(self, done: int, total: int) -> None:
        """Show how many bytes of a pass have been read; called from any thread."""
        if not self._is_late() or (bar := self._open()) is None:
            return
        if self._task is None or done < self._done or bar.tasks[0].total != total:
            self._new_task(total)
        self._done = done
        if self._task is not None:
            bar.update(self._task, completed=done)

    def _is_late(self) -> bool:
        return self._is_shown and self._clock() - self._begun_s >= PATIENCE_S

    def _new_task(self, total: int | None) -> TaskID:
        bar = self._open()
        if self._task is not None:
            bar.remove_task(self._task)
        self._task = bar.add_task(self._text, total=total)
        self._done = 0
        return self._task

    def _open(self) -> Progress:
        """Return the bar, shown."""
        if self._bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
                transient=True,
            )
            self._bar.start()
        return self._bar
