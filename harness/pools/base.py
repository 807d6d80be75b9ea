"""What every pool of workers offers: start a job, ask how it is, end it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from harness.results import WorkerExit

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
"""What the libraries below a worker read to learn their share of the cores."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One cell, ready to be started: its folder holds its instructions."""

    folder: Path
    """The cell's folder, absolute; marks its processes."""
    scratch: Path
    """An empty folder for temporary files, the worker's current one."""
    log: Path
    """Where standard output and error go."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The whole environment of the worker."""
    timeout_s: float
    """Seconds it may take."""
    preload: Literal["none", "light", "engine"] = "engine"
    """What may be imported before it begins: nothing at all (a clean interpreter), only what
    decides a rejection, or the whole engine."""
    memory_limit: int | None = None
    """Bytes of private memory that each of its processes may have."""


class Running(Protocol):
    """A started worker."""

    def poll(self) -> WorkerExit | None:
        """Return how it ended, or None while it runs; enforces the time limit."""

    def kill(self) -> WorkerExit:
        """End it at once, with everything it started, and wait for that."""


class Pool(Protocol):
    """Starts workers."""

    def start(self, job: Job) -> Running:
        """Start a worker.

        Raises:
            OSError: it cannot be started.
        """

    def wait(self, seconds: float) -> None:
        """Sleep until a worker may have ended, at most this long."""

    def close(self) -> None:
        """Give back what the pool holds; running workers have ended before."""
