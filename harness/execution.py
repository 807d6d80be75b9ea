"""One execution of one cell: its folder is made, its worker started, what it left is judged."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from harness.cell_folder import LOG_FILE, drop_scratch, make_folder, read_tail, wipe_folder
from harness.environment import PROJECT, count_cores, hash_sources, sign_sources
from harness.findings import Status
from harness.gpus import VISIBLE, GpuSlots
from harness.matrix import Cell
from harness.pools.base import THREAD_VARIABLES, Job, Pool, Running
from harness.pools.warm import WarmPool
from harness.results import CellResult, Outcome, WorkerExit
from mudpuppy.cache import cache_root
from mudpuppy.errors import OutputError

MANY_CORES = 4
"""Cores of a share from which on compiling in several processes is worth starting them."""

Judge = Callable[[Cell, Path, WorkerExit], CellResult]
"""Turns what a worker left behind into a result; it must not write into the folder."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """In which order cells run, how often and where."""

    durations: Mapping[str, float] = field(default_factory=dict)
    """Seconds that cells took before, by id: the longest are started first."""
    fail_fast: bool = False
    """Whether the first cell that does not come out as expected ends the run."""
    repeat: int = 1
    """How often every cell runs; to come out as expected only sometimes is flaky."""
    gpus: GpuSlots | None = None
    """GPUs to share out, one cell each."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What is the same for every cell of a run."""

    judge: Judge
    """Judges a cell after its worker ended."""
    plant: str | None = None
    """Bug to plant into the workers."""
    jobs: int = 1
    """Workers at a time; each gets its share of the cores."""
    pool: Pool = field(default_factory=WarmPool)
    """Starts the workers."""
    environment: Mapping[str, Any]
    """Versions and the like, which go into every result."""
    run_id: str = ""
    """The run in the history; empty where none is kept."""
    plan: Plan = field(default_factory=Plan)
    """In which order, how often, where."""
    on_attempt: Callable[[CellResult], None] = lambda result: None
    """Told of every single execution of cells that are repeated."""


@dataclass(frozen=True)
class Execution:
    """A cell whose worker runs."""

    cell: Cell
    """The cell."""
    folder: Path
    """Its folder."""
    worker: Running
    """Its worker."""
    attempt: int
    """How many times it was run in this folder, this one included."""
    started: str
    """When it was started, in UTC, ISO 8601."""
    devices: tuple[str, ...]
    """GPUs that it has to itself."""
    environment: Mapping[str, Any]
    """Versions and the like at its start."""


class CodeWatch:
    """Keeps the environment that results are labelled with true while the source may change."""

    def __init__(self, environment: Mapping[str, Any]) -> None:
        self._environment = dict(environment)
        self._signature = sign_sources()

    def look(self) -> Mapping[str, Any]:
        """Return the environment as it is now."""
        signature = sign_sources()
        if signature != self._signature:
            self._signature = signature
            self._environment = {**self._environment, "sources": hash_sources()}
        return self._environment


def start_cell(
    cell: Cell,
    run_dir: Path,
    options: RunOptions,
    *,
    environment: Mapping[str, Any],
    last_attempt: int | None = None,
    devices: tuple[str, ...] = (),
) -> Execution:
    """Make a cell's folder anew and start its worker.

    Args:
        cell: the cell.
        run_dir: folder of the run.
        options: what is the same for all cells.
        environment: versions and the like, for its result.
        last_attempt: number of the execution before this one, if it was in this run; else the
            folder tells it.
        devices: GPUs that it may use; with none, and GPUs to share out, it sees none.

    Raises:
        OutputError: its folder cannot be made.
    """
    folder = run_dir / cell.cell_id
    try:
        on_disk = wipe_folder(folder)
        attempt = 1 + (on_disk if last_attempt is None else last_attempt)
        scratch = make_folder(folder, cell, cell.plant or options.plant, earlier=attempt - 1)
        variables = worker_environment(scratch, options.jobs)
        if options.plan.gpus is not None:
            variables |= dict.fromkeys(VISIBLE, ",".join(devices))
        worker = options.pool.start(
            Job(
                folder=folder.resolve(),
                scratch=scratch,
                log=folder.resolve() / LOG_FILE,
                environment=variables,
                timeout_s=cell.timeout_s,
                preload=preload_of(cell),
                memory_limit=cell.memory_limit,
            )
        )
    except OSError as error:
        raise OutputError(f"{folder}: the cell cannot be started: {error}") from None
    return Execution(cell, folder, worker, attempt, now(), devices, environment)


def conclude_cell(
    one: Execution, worker_exit: WorkerExit, options: RunOptions, *, trouble: str = ""
) -> CellResult:
    """Have a cell judged and return its result, which is not written yet.

    Args:
        one: the execution that has ended.
        worker_exit: how it ended.
        options: what is the same for all cells.
        trouble: what is wrong with the machine since, so that the cell cannot be believed.
    """
    judged = _judge(one, worker_exit, options)
    if trouble:
        outcome = Outcome.INFRASTRUCTURE
        message = f"{trouble}; the cell itself: {judged.outcome}: {judged.message}"
        judged = replace(judged, outcome=outcome, status=outcome.status, message=message)
    tail = "" if judged.status is Status.PASSED else read_tail(one.folder / LOG_FILE)
    drop_scratch(one.folder)
    return replace(
        judged,
        worker=worker_exit,
        log_tail=judged.log_tail or tail,
        plant=one.cell.plant or options.plant,
        attempt=one.attempt,
        started=one.started,
        finished=now(),
        environment=dict(one.environment),
        run_id=options.run_id,
    )


def plain_result(cell: Cell, outcome: Outcome, message: str) -> CellResult:
    """Return a result that says no more than how it ended."""
    return CellResult(**cell.identity(), outcome=outcome, status=outcome.status, message=message)


def worker_environment(scratch: Path, jobs: int) -> dict[str, str]:
    """Return the environment of a worker: its share of the cores and a place of its own.

    Who sets OMP_NUM_THREADS gets no more threads than that: on a busy machine two threads that wait
    for each other at every product take ten times as long as one.

    Compiled kernels are shared by all runs unless the environment says where else: they are stored
    by their content, and making them anew takes a minute a cell.
    """
    share = max(1, min(count_cores() // jobs, _asked_threads()))
    search = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    compiled = cache_root() / "compiled"
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"),
        "TRITON_CACHE_DIR": str(compiled / "triton"),
        **os.environ,
        **dict.fromkeys(THREAD_VARIABLES, str(share)),
        "TORCHINDUCTOR_COMPILE_THREADS": str(share if share >= MANY_CORES else 1),
        "PYTHONPATH": os.pathsep.join(search),
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MASTER_PORT": str(find_free_port()),
        "TMPDIR": str(scratch),
    }


def _asked_threads() -> int:
    """Return the threads that the environment allows; all cores where it says nothing."""
    word = os.environ.get("OMP_NUM_THREADS", "")
    return int(word) if word.isdecimal() and int(word) else count_cores()


def find_free_port() -> int:
    """Return a TCP port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def preload_of(cell: Cell) -> Literal["none", "light", "engine"]:
    """Return what may be imported before the cell begins; a rejection must come before torch."""
    if cell.needs_fresh:
        return "none"
    return "light" if cell.expect.outcome == "rejected" else "engine"


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _judge(one: Execution, worker_exit: WorkerExit, options: RunOptions) -> CellResult:
    """Return what the judge says; one cell that cannot be judged is not the end."""
    if worker_exit.lost:
        why = f"{worker_exit.words}, also when it ran alone; log in {one.folder / LOG_FILE}"
        return plain_result(one.cell, Outcome.LOST, why)
    try:
        return options.judge(one.cell, one.folder, worker_exit)
    except Exception as error:  # noqa: BLE001 - whatever the judge does, the cell has a result
        why = f"could not be judged: {type(error).__name__}: {error}"
        return plain_result(one.cell, Outcome.CRASHED, why)
