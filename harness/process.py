"""Child processes that cannot outlive their cell: own session, time limit, no survivors.

A worker gets a session of its own, so that one signal reaches it and its children. Children that
moved to a session of their own are found by a mark in their environment (Linux), also those that an
earlier, killed runner left behind.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.results import WorkerExit
from mudpuppy.children import die_with
from mudpuppy.exits import name_signal

MARK = "MUDPUPPY_CELL_FOLDER"
"""Environment variable with the cell's folder; every descendant of a worker carries it."""
GRACE_S = 5.0
"""Seconds between asking a worker to end and making it."""


class Process(Protocol):
    """A process that was started and not yet waited for."""

    pid: int
    """Its id, and that of its group."""
    returncode: int | None
    """How it ended, once that is known."""


@dataclass
class Worker:
    """A running worker; ask `poll` until it gives its exit."""

    process: Process
    """The child itself; reaped here and not by `Popen`, to learn its resource use."""
    folder: Path
    """The cell's folder, which marks its descendants."""
    timeout_s: float
    """Seconds it may take."""
    started_s: float = field(default_factory=time.monotonic)
    """Start, on the monotonic clock."""
    asked_to_end_s: float | None = None
    """When it was sent SIGTERM because its time was over."""

    def poll(self) -> WorkerExit | None:
        """Return how the worker ended, or None while it runs; enforces the time limit."""
        pid, wait_status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if pid == 0:
            self._enforce_limit()
            return None
        return self._conclude(wait_status, usage)

    def kill(self) -> WorkerExit:
        """End the worker at once and wait for it."""
        signal_group(self.process.pid, signal.SIGKILL)
        _, wait_status, usage = os.wait4(self.process.pid, 0)
        return self._conclude(wait_status, usage)

    def _enforce_limit(self) -> None:
        now = time.monotonic()
        if self.asked_to_end_s is None and now - self.started_s > self.timeout_s:
            self.asked_to_end_s = now
            signal_group(self.process.pid, signal.SIGTERM)
        elif self.asked_to_end_s is not None and now - self.asked_to_end_s > GRACE_S:
            signal_group(self.process.pid, signal.SIGKILL)

    def _conclude(self, wait_status: int, usage: resource.struct_rusage) -> WorkerExit:
        code = os.waitstatus_to_exitcode(wait_status)
        self.process.returncode = code  # Popen must not wait for a pid that may be reused
        leftovers = kill_marked(self.folder, group=self.process.pid)
        return WorkerExit(
            exit_code=code if code >= 0 else None,
            signal=name_signal(-code) if code < 0 else None,
            timed_out=self.asked_to_end_s is not None,
            wall_s=round(time.monotonic() - self.started_s, 3),
            peak_rss_bytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            cpu_s=usage.ru_utime + usage.ru_stime,
            killed_leftovers=leftovers,
        )


def start_worker(
    command: Sequence[str],
    *,
    folder: Path,
    scratch: Path,
    log: Path,
    environment: Mapping[str, str],
    timeout_s: float,
    memory_limit: int | None = None,
) -> Worker:
    """Start a worker in its own session, its output going to `log`.

    Raises:
        OSError: the command cannot be started.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=scratch,
            env={**environment, MARK: str(folder.resolve())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_confine(os.getpid(), memory_limit),
        )
    return Worker(process=process, folder=folder, timeout_s=timeout_s)


def kill_marked(folder: Path, *, group: int | None = None) -> int:
    """Kill every process that a worker of `folder`, or of a folder below it, left behind.

    Args:
        folder: folder of a cell, or of a whole run.
        group: process group of the worker, for systems without `/proc`.

    Returns:
        How many were found by their mark.
    """
    wanted = str(folder.resolve())
    killed: set[int] = set()
    for _ in range(10):  # a process may fork while it is being looked for
        found = set(_find_marked(wanted))
        if group is not None:
            signal_group(group, signal.SIGKILL)
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed |= found
        if not found:
            break
        time.sleep(0.02)
    return len(killed)


def _find_marked(wanted: str) -> Iterator[int]:
    """Yield the pids of live processes whose environment has the mark of the folder."""
    mark = f"{MARK}={wanted}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile, or belongs to somebody else
            continue
        if any(one == mark or one.startswith(mark + b"/") for one in variables):
            yield int(entry.name)


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group; one that has ended is no mistake."""
    with suppress(ProcessLookupError, PermissionError):  # PermissionError: only zombies, on macOS
        os.killpg(group, number)


def tell_stack_when_ended() -> None:
    """Print the stack of every thread on SIGTERM, and end by it: a hang leaves where it hung."""
    faulthandler.register(signal.SIGTERM, all_threads=True, chain=True)


def _confine(parent: int, memory_limit: int | None) -> Callable[[], None]:
    """Return what a child does first: die with its parent, and keep to its memory."""
    ask = die_with(parent)

    def confine() -> None:
        if ask is not None:
            ask()
        if memory_limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))

    return confine
