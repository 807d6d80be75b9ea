"""Workers in clean interpreters: nothing is shared, and each pays for its imports."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.pools.base import Job
from harness.process import Worker, start_worker

POLL_S = 0.01
"""Seconds between two looks at the running workers."""
WORKER_COMMAND: tuple[str, ...] = (sys.executable, "-m", "harness.worker")
"""What is started for a cell; the cell's folder is appended."""


@dataclass(frozen=True)
class SpawnPool:
    """Starts one interpreter for each job."""

    command: Sequence[str] = field(default_factory=lambda: WORKER_COMMAND)
    """What is started; the cell's folder is appended."""

    def start(self, job: Job) -> Worker:
        """Start an interpreter.

        Raises:
            OSError: it cannot be started.
        """
        return start_worker(
            [*self.command, str(job.folder)],
            folder=job.folder,
            scratch=job.scratch,
            log=job.log,
            environment=job.environment,
            timeout_s=job.timeout_s,
            memory_limit=job.memory_limit,
        )

    def wait(self, seconds: float) -> None:
        """Sleep for a moment: children of ours are asked one by one."""
        time.sleep(min(seconds, POLL_S))

    def close(self) -> None:
        """Hold nothing, give nothing back."""
