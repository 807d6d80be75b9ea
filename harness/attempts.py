"""Run one command in a forked process and session of its own, with a time limit and its output.

The libraries are imported already, so a command costs what it does and no more. It is ended as a
cell is: by `harness.process.Worker`, which asks, then kills the group, then whoever is left.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.facts.faults import Ending
from harness.phases import start_phase
from harness.process import MARK, Worker

POLL_S = 0.005
"""Seconds between two looks at a running command."""
LINES = 30
"""Lines of its standard error that are kept."""
COMPLAINTS = ("mud-puppy: error:", "mud-puppy: interrupted", "mud-puppy: terminated")
"""How a message of ours begins."""
STACK = "(most recent call first)"
"""What `faulthandler` writes above a stack."""

Command = Callable[[], int]
"""What the process does; returns its exit code."""


@dataclass
class Forked:
    """A forked process, as `Worker` wants to know it."""

    pid: int
    """Its id, and that of its group."""
    returncode: int | None = None
    """How it ended; set by the worker."""


@dataclass
class Attempt:
    """A running command."""

    name: str
    """Which one it is."""
    folder: Path
    """Where its output is kept; marks its processes."""
    worker: Worker
    """Ends it in time."""
    started_s: float = field(default_factory=time.monotonic)
    """Start, on the monotonic clock."""

    def wait(self) -> Ending:
        """Wait for its end and return it; the output is shown as well."""
        while (found := self.worker.poll()) is None:
            time.sleep(POLL_S)
        errors = (self.folder / "err").read_text(encoding="utf-8", errors="replace")
        self._show()
        lines = errors.splitlines()
        return Ending(
            name=self.name,
            exit_code=found.exit_code,
            signal=found.signal,
            timed_out=found.timed_out,
            seconds=found.wall_s,
            peak_rss_bytes=found.peak_rss_bytes,
            said=tuple(lines[-LINES:]),
            complaints=sum(line.startswith(COMPLAINTS) for line in lines),
            traceback="Traceback (most recent call last)" in errors,
            stack=STACK in errors,
            children_left=found.killed_leftovers,
        )

    def output(self) -> str:
        """Return what it has written to its standard output."""
        return (self.folder / "out").read_text(encoding="utf-8", errors="replace")

    def _show(self) -> None:
        for name in ("out", "err"):
            text = (self.folder / name).read_text(encoding="utf-8", errors="replace")
            for line in text.splitlines():
                print(f"{self.name} | {line}", flush=True)


def start_attempt(name: str, command: Command, folder: Path, *, timeout_s: float) -> Attempt:
    """Start a command.

    Args:
        name: what it is called in the log.
        command: run in the fork; what it raises is printed, and the exit code is 1.
        folder: made; gets `out` and `err`, and marks the processes that the command starts.
        timeout_s: seconds it may take.
    """
    folder.mkdir(parents=True)
    for one in ("out", "err"):
        (folder / one).touch()
    pid = start_phase(lambda: _be_command(command, folder))
    return Attempt(name, folder, Worker(Forked(pid), folder, timeout_s))


def _be_command(command: Command, folder: Path) -> None:
    """Be a process as a shell would have started it, and leave with the command's exit code."""
    os.setsid()
    faulthandler.unregister(signal.SIGTERM)  # the worker's; a command decides for itself
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ[MARK] = str(folder.resolve())
    for stream, name in ((1, "out"), (2, "err")):
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
    code = command()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
