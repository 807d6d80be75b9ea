"""What the doctor shows while it works: a line on a terminal, and where models are asked always."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from reports.text import clean

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

QUIET_S = 30.0
"""Seconds between two lines where there is no terminal and models are asked."""
PATIENCE_S = 0.7
"""Seconds without a word; most examinations are over by then, and rich is never imported."""


class ScanProgress:
    """One line that says what is being done, with a bar while weights are read.

    Anything that is not a terminal is shown nothing while files are read. To ask models takes
    minutes: there, and in the log of a build, that it goes on is said now and then.
    """

    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        *,
        asks: bool = False,
        quiet_s: float = QUIET_S,
    ) -> None:
        """Prepare; `close` removes the line in the end.

        Args:
            stream: where to show it.
            clock: tells the seconds.
            asks: whether models are asked, so that it is said without a terminal, too.
            quiet_s: seconds between two lines without a terminal.
        """
        self._stream = stream
        self._clock = clock
        self._is_shown = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._begun_s = clock()
        self._is_told = asks and not self._is_shown
        self._quiet_s = quiet_s
        self._is_over = threading.Event()
        self._teller: threading.Thread | None = None
        self._text = "examining"
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._columns: tuple[ProgressColumn, ...] = ()
        self._done = 0

    def close(self) -> None:
        """Remove the line."""
        if self._bar is not None:
            self._bar.stop()
        self._is_over.set()
        if self._teller is not None:
            self._teller.join()

    def say(self, text: str) -> None:
        """Show one line about what begins."""
        self._text = clean(text)
        if self._is_told and self._teller is None:
            self._write()
            self._teller = threading.Thread(target=self._tell, daemon=True)
            self._teller.start()
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

    def _tell(self) -> None:
        """Say now and then what is being done, also while a model is loaded for minutes."""
        while not self._is_over.wait(self._quiet_s):
            self._write()

    def _write(self) -> None:
        seconds = self._clock() - self._begun_s
        self._stream.write(f"mudpuppy-doctor: {seconds:.0f} s: {self._text}\n")
        self._stream.flush()

    def _is_late(self) -> bool:
        return self._is_shown and self._clock() - self._begun_s >= PATIENCE_S

    def _new_task(self, total: int | None) -> TaskID:
        bar = self._open()
        if self._task is not None:
            bar.remove_task(self._task)
        # What is not counted in bytes has a text, such as the question that is answered.
        bar.columns = self._columns if total is not None else self._columns[:1]
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

            self._columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(
                *self._columns,
                console=Console(file=self._stream),
                transient=True,
            )
            self._bar.start()
        return self._bar
