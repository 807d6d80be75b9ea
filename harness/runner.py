"""Run cells: one child process each, at most `jobs` at a time, every finished one exactly once.

The loop is single-threaded: it starts workers, looks who ended, has the cell judged and writes its
result, last and atomically. A folder without a result is half done and is made anew; a folder with
one is kept. So a runner may be killed at any moment and started again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from harness.cell_folder import (
    LOG_FILE,
    Rerun,
    drop_scratch,
    find_finished,
    lock_folder,
    make_folder,
    read_tail,
    retire_result,
    wipe_folder,
)
from harness.environment import PROJECT, count_cores, describe_environment, is_same_code
from harness.findings import Status
from harness.matrix import Cell
from harness.pools.base import THREAD_VARIABLES, Job, Pool, Running
from harness.pools.warm import WarmPool
from harness.process import kill_marked
from harness.queue import CellQueue
from harness.recorder import Recorder, RunStart
from harness.results import (
    CellResult,
    Event,
    Finished,
    MatrixResult,
    Outcome,
    Started,
    WorkerExit,
    judge_matrix,
    write_result,
)
from mudpuppy.errors import OutputError

WAIT_S = 0.1
"""Seconds after which time limits are looked at, when nobody ends meanwhile."""

Judge = Callable[[Cell, Path, WorkerExit], CellResult]
"""Turns what a worker left behind into a result; it must not write into the folder."""


Listener = Callable[[Event], None]


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


Dispatch = Callable[[Sequence[Cell], Path, RunOptions, Listener], Generator[CellResult, None, None]]
"""Runs cells, as `run_cells` does."""


def run_matrix(
    cells: Sequence[Cell],
    run_dir: Path,
    *,
    judge: Judge,
    name: str = "matrix",
    matrix: str = "",
    jobs: int = 1,
    rerun: Rerun = "none",
    plant: str | None = None,
    model: str | None = None,
    left_out: Sequence[tuple[Cell, str]] = (),
    on_event: Listener = lambda event: None,
    pool: Pool | None = None,
    recorder: Recorder | None = None,
    dispatch: Dispatch | None = None,
) -> MatrixResult:
    """Run every cell that has no result yet, and return the results of all.

    Args:
        cells: cells to run, in matrix order.
        run_dir: folder of the run; one folder per cell is made in it, named by the cell's id.
        judge: turns what a worker left behind into a result.
        name: name of the matrix.
        matrix: scenario file, as it was given.
        jobs: workers at a time.
        rerun: which finished cells run again: `none`, `failed` (all that did not pass), `all`.
        plant: bug to plant into every worker; results made with another plant are not kept.
        model: model that the cells were given instead of the one in the file, to be noted.
        left_out: cells that do not run, each with the reason.
        on_event: told whenever a cell starts or has its result.
        recorder: writes the run and each result into the history.
        pool: starts the workers, and stays open; by default they are forks of a warm process.
        dispatch: runs the cells elsewhere, and writes their results as `run_cells` does.

    Raises:
        OutputError: the folder cannot be written, or another runner is using it.
        KeyboardInterrupt: as it came; running workers were killed, finished cells stay finished.
    """
    started = _now()
    with ExitStack() as stack:
        stack.enter_context(lock_folder(run_dir))
        options = RunOptions(
            judge=judge,
            plant=plant,
            jobs=jobs,
            pool=pool or stack.enter_context(closing(WarmPool())),
            environment=describe_environment(),
        )
        kill_marked(run_dir)  # workers of a runner that was killed
        if recorder is not None:
            recorder.recover(run_dir)
        kept, waiting = _split_finished(cells, run_dir, options, rerun)
        if recorder is not None:
            start = RunStart(
                name=name,
                matrix=matrix,
                plant=plant,
                model=model,
                environment=options.environment,
                is_rerun=rerun != "none",
            )
            options = replace(options, run_id=recorder.begin(start, kept, len(waiting)))
        results = [*(not_run(cell, why) for cell, why in left_out), *kept]
        for result in results:
            on_event(Finished(result, kept=True))
        with closing((dispatch or run_cells)(waiting, run_dir, options, on_event)) as new:
            for result in new:
                results.append(result)
                if recorder is not None:
                    recorder.add(result)
        verdict, exit_code, counts = judge_matrix(result.status for result in results)
        if recorder is not None:
            recorder.finish(verdict)
    results.sort(key=lambda result: result.number)
    return MatrixResult(
        name=name,
        matrix=matrix,
        folder=str(run_dir),
        verdict=verdict,
        exit_code=exit_code,
        counts=counts,
        cells=tuple(results),
        plant=plant,
        model=model,
        environment=dict(options.environment),
        started=started,
        finished=_now(),
        kept=tuple(result.name for result in kept),
        run_id=options.run_id,
    )


def run_cells(
    cells: Sequence[Cell] | CellQueue,
    run_dir: Path,
    options: RunOptions,
    on_event: Listener = lambda event: None,
) -> Generator[CellResult, None, None]:
    """Run cells in their order and yield each result once it is written.

    Closing the iterator, or an exception such as Ctrl-C, kills the workers that still run.

    Raises:
        OutputError: a cell's folder cannot be made.
    """
    queue = cells if isinstance(cells, CellQueue) else CellQueue(cells)
    running: list[_RunningCell] = []
    try:
        while queue or running:
            while (cell := queue.take(len(running), options.jobs)) is not None:
                running.append(_start(cell, run_dir, options, queue.losses(cell)))
                on_event(Started(cell.cell_id))
            for one, worker_exit in _find_ended(running):
                running.remove(one)
                if worker_exit.lost and queue.lose(one.cell):
                    continue
                result = _conclude(one, worker_exit, options)
                on_event(Finished(result))
                yield result
            if running:
                options.pool.wait(WAIT_S)
    finally:
        for one in running:
            one.worker.kill()
            drop_scratch(one.folder)


def _find_ended(running: Sequence[_RunningCell]) -> Iterator[tuple[_RunningCell, WorkerExit]]:
    """Yield the cells whose workers have ended."""
    for one in list(running):
        worker_exit = one.worker.poll()
        if worker_exit is not None:
            yield one, worker_exit


def not_run(cell: Cell, reason: str) -> CellResult:
    """Return the result of a cell that did not run."""
    return _plain_result(cell, Outcome.NOT_RUN, reason)


def worker_environment(scratch: Path, jobs: int) -> dict[str, str]:
    """Return the environment of a worker: its share of the cores and a place of its own."""
    threads = str(max(1, count_cores() // jobs))
    search = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        **dict.fromkeys(THREAD_VARIABLES, threads),
        "PYTHONPATH": os.pathsep.join(search),
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TMPDIR": str(scratch),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "TRITON_CACHE_DIR": str(scratch / "triton"),
    }


def preload_of(cell: Cell) -> Literal["none", "light", "engine"]:
    """Return what may be imported before the cell begins; a rejection must come before torch."""
    if cell.needs_fresh:
        return "none"
    return "light" if cell.expect.outcome == "rejected" else "engine"


@dataclass(frozen=True)
class _RunningCell:
    """A cell whose worker runs."""

    cell: Cell
    folder: Path
    worker: Running
    attempt: int
    started: str


def _start(cell: Cell, run_dir: Path, options: RunOptions, losses: int) -> _RunningCell:
    """Make the cell's folder anew and start its worker."""
    folder = run_dir / cell.cell_id
    try:
        attempt = wipe_folder(folder) + 1 + losses
        scratch = make_folder(folder, cell, options.plant)
        worker = options.pool.start(
            Job(
                folder=folder.resolve(),
                scratch=scratch,
                log=folder.resolve() / LOG_FILE,
                environment=worker_environment(scratch, options.jobs),
                timeout_s=cell.timeout_s,
                preload=preload_of(cell),
                memory_limit=cell.memory_limit,
            )
        )
    except OSError as error:
        raise OutputError(f"{folder}: the cell cannot be started: {error}") from None
    return _RunningCell(cell, folder, worker, attempt, _now())


def _conclude(one: _RunningCell, worker_exit: WorkerExit, options: RunOptions) -> CellResult:
    """Have a cell judged and write its result."""
    judged = _judge(one, worker_exit, options)
    tail = "" if judged.status is Status.PASSED else read_tail(one.folder / LOG_FILE)
    result = replace(
        judged,
        worker=worker_exit,
        log_tail=judged.log_tail or tail,
        plant=options.plant,
        attempt=one.attempt,
        started=one.started,
        finished=_now(),
        environment=dict(options.environment),
        run_id=options.run_id,
    )
    drop_scratch(one.folder)
    write_result(one.folder, result)
    return result


def _judge(one: _RunningCell, worker_exit: WorkerExit, options: RunOptions) -> CellResult:
    """Return what the judge says; one cell that cannot be judged is not the end."""
    if worker_exit.lost:
        why = f"{worker_exit.words}, also when it ran alone; log in {one.folder / LOG_FILE}"
        return _plain_result(one.cell, Outcome.LOST, why)
    try:
        return options.judge(one.cell, one.folder, worker_exit)
    except Exception as error:  # noqa: BLE001 - whatever the judge does, the cell has a result
        why = f"could not be judged: {type(error).__name__}: {error}"
        return _plain_result(one.cell, Outcome.CRASHED, why)


def _split_finished(
    cells: Sequence[Cell], run_dir: Path, options: RunOptions, rerun: Rerun
) -> tuple[list[CellResult], list[Cell]]:
    """Return the results that stay and the cells that run; a result of other code never stays."""
    kept: list[CellResult] = []
    waiting: list[Cell] = []
    for cell in cells:
        old = find_finished(run_dir / cell.cell_id, options.plant, rerun)
        if old is None or not is_same_code(old.environment, options.environment):
            retire_result(run_dir / cell.cell_id)
            waiting.append(cell)
        else:
            # Wording and place may have changed since; the id says that the content did not.
            kept.append(replace(old, name=cell.name, title=cell.title, number=cell.number))
    return kept, waiting


def _plain_result(cell: Cell, outcome: Outcome, message: str) -> CellResult:
    return CellResult(**cell.identity(), outcome=outcome, status=outcome.status, message=message)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
