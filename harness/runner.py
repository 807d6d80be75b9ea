"""Run cells: one child process each, at most `jobs` at a time, every finished one exactly once.

The loop is single-threaded: it starts workers, looks who ended, has the cell judged and writes its
result, last and atomically. A folder without a result is half done and is made anew; a folder with
one is kept. So a runner may be killed at any moment and started again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from harness.cell_folder import Rerun, drop_scratch, find_finished, lock_folder, retire_result
from harness.environment import describe_environment, is_same_code
from harness.execution import (
    CodeWatch,
    Execution,
    Judge,
    Plan,
    RunOptions,
    conclude_cell,
    now,
    plain_result,
    start_cell,
)
from harness.findings import Status
from harness.gpus import gpus_wanted
from harness.matrix import Cell
from harness.pools.base import Pool
from harness.pools.warm import WarmPool
from harness.process import kill_marked
from harness.queue import CellQueue
from harness.recorder import Recorder, RunStart
from harness.repeats import fold, put_aside
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

WAIT_S = 0.1
"""Seconds after which time limits are looked at, when nobody ends meanwhile."""

Listener = Callable[[Event], None]
"""Told whenever a cell starts or has its result."""


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
    plan: Plan | None = None,
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
        plan: in which order cells run, how often, on which GPUs, and whether a failure ends it.

    Raises:
        OutputError: the folder cannot be written, or another runner is using it.
        KeyboardInterrupt: as it came; running workers were killed, finished cells stay finished.
    """
    started = now()
    with ExitStack() as stack:
        stack.enter_context(lock_folder(run_dir))
        options = RunOptions(
            judge=judge,
            plant=plant,
            jobs=jobs,
            pool=pool or stack.enter_context(closing(WarmPool())),
            environment=describe_environment(),
            plan=plan or Plan(),
            on_attempt=recorder.add_attempt if recorder else lambda result: None,
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
        results = [*(plain_result(cell, Outcome.NOT_RUN, why) for cell, why in left_out), *kept]
        for result in results:
            on_event(Finished(result, kept=True))
        with closing((dispatch or run_cells)(waiting, run_dir, options, on_event)) as new:
            for result in new:
                results.append(result)
                if recorder is not None:
                    recorder.add(result)
        stopped = _list_missing(cells, results) if options.plan.fail_fast else []
        results += stopped
        verdict, exit_code, counts = judge_matrix(result.status for result in results)
        if recorder is not None and not stopped:
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
        finished=now(),
        kept=tuple(result.name for result in kept),
        run_id=options.run_id,
    )


def run_cells(
    cells: Sequence[Cell] | CellQueue,
    run_dir: Path,
    options: RunOptions,
    on_event: Listener = lambda event: None,
) -> Generator[CellResult, None, None]:
    """Run cells, the longest first, and yield each result once it is written.

    Closing the iterator, or an exception such as Ctrl-C, kills the workers that still run.

    Args:
        cells: cells to run.
        run_dir: folder of the run.
        options: what is the same for all cells.
        on_event: told whenever a cell starts or has its result.

    Raises:
        OutputError: a cell's folder cannot be made.
        PoolError: there is nothing that workers could be forked from.
    """
    queue = cells if isinstance(cells, CellQueue) else CellQueue(cells, options.plan.durations)
    loop = _Loop(queue, run_dir, options, on_event)
    try:
        yield from loop.run()
    finally:
        loop.stop()


class _Loop:
    """The cells of a run on their way from waiting to their result."""

    def __init__(
        self,
        queue: CellQueue,
        run_dir: Path,
        options: RunOptions,
        on_event: Listener,
    ) -> None:
        self._run_dir = run_dir
        self._options = options
        self._plan = options.plan
        self._on_event = on_event
        self._queue = queue
        self._code = CodeWatch(options.environment)
        self._running: list[Execution] = []
        self._ended: list[tuple[Execution, WorkerExit, str]] = []
        self._last_attempt: dict[str, int] = {}
        self._times: dict[str, list[CellResult]] = defaultdict(list)

    def run(self) -> Iterator[CellResult]:
        """Run until nothing waits, or until the first failure where that is wanted."""
        while self._queue or self._running:
            yield from self._fill()
            # The free places are taken before anybody is judged: judging takes a while.
            self._ended.extend(self._take_ended())
            yield from self._fill() if self._ended else ()
            if not self._ended and self._running:
                self._options.pool.wait(WAIT_S)
            has_failed = False
            while self._ended:  # all of them, also after a failure: their results are there
                result = self._conclude(*self._ended[0])
                del self._ended[0]
                if result is None:
                    continue
                has_failed |= result.status in (Status.FAILED, Status.CRASHED)
                self._on_event(Finished(result))
                yield result
            if has_failed and self._plan.fail_fast:
                return

    def stop(self) -> None:
        """End what still runs, and remove what was not concluded."""
        for one, _, _ in self._ended:
            drop_scratch(one.folder)
        for one in self._running:
            one.worker.kill()
            drop_scratch(one.folder)

    def _fill(self) -> Iterator[CellResult]:
        """Start cells where there is room; yield the results of those that never can."""
        gpus = self._plan.gpus
        while cell := self._queue.take(len(self._running), self._options.jobs, self._fits):
            number = gpus_wanted(cell)
            if gpus is not None and not gpus.can_ever_run(number):
                yield self._give_up(cell, "; ".join(gpus.set_aside.values()))
                continue
            one = start_cell(
                cell,
                self._run_dir,
                self._options,
                environment=self._code.look(),
                last_attempt=self._last_attempt.get(cell.cell_id),
                devices=gpus.take(number) if gpus else (),
            )
            self._last_attempt[cell.cell_id] = one.attempt
            self._running.append(one)
            self._on_event(Started(cell.cell_id))

    def _fits(self, cell: Cell) -> bool:
        """Whether there are free devices for a cell, or will never be."""
        gpus, number = self._plan.gpus, gpus_wanted(cell)
        return gpus is None or gpus.is_free(number) or not gpus.can_ever_run(number)

    def _take_ended(self) -> Iterator[tuple[Execution, WorkerExit, str]]:
        """Yield the executions that have ended, and what is wrong with their devices since."""
        for one in list(self._running):
            worker_exit = one.worker.poll()
            if worker_exit is None:
                continue
            self._running.remove(one)
            trouble = self._plan.gpus.give_back(one.devices) if self._plan.gpus else ""
            if worker_exit.lost and self._queue.lose(one.cell):
                drop_scratch(one.folder)
            else:
                yield one, worker_exit, trouble

    def _conclude(self, one: Execution, worker_exit: WorkerExit, trouble: str) -> CellResult | None:
        """Write the result of a cell and return it, or None when it has to run again."""
        result = conclude_cell(one, worker_exit, self._options, trouble=trouble)
        if self._plan.repeat > 1:
            times = self._times[one.cell.cell_id]
            times.append(result)
            self._options.on_attempt(result)
            if len(times) < self._plan.repeat:
                write_result(put_aside(self._run_dir, one.cell.cell_id, one.attempt), result)
                self._queue.again(one.cell)
                return None
            result = fold(times)
        write_result(one.folder, result)
        return result

    def _give_up(self, cell: Cell, why: str) -> CellResult:
        """Write and return the result of a cell for which no device is left."""
        folder = self._run_dir / cell.cell_id
        folder.mkdir(parents=True, exist_ok=True)
        result = replace(
            plain_result(cell, Outcome.INFRASTRUCTURE, f"no GPU is left for it: {why}"),
            plant=cell.plant or self._options.plant,
            run_id=self._options.run_id,
            environment=dict(self._options.environment),
            finished=now(),
        )
        write_result(folder, result)
        self._on_event(Finished(result))
        return result


def _list_missing(cells: Sequence[Cell], results: Sequence[CellResult]) -> list[CellResult]:
    """Return a result for every cell that a run which ended early did not come to."""
    known = {result.cell_id for result in results}
    why = "the run ended with the first failure (--fail-fast)"
    return [plain_result(c, Outcome.NOT_RUN, why) for c in cells if c.cell_id not in known]


def _split_finished(
    cells: Sequence[Cell], run_dir: Path, options: RunOptions, rerun: Rerun
) -> tuple[list[CellResult], list[Cell]]:
    """Return the results that stay and the cells that run; a result of other code never stays."""
    kept: list[CellResult] = []
    waiting: list[Cell] = []
    for cell in cells:
        old = find_finished(run_dir / cell.cell_id, cell.plant or options.plant, rerun)
        if old is None or not is_same_code(old.environment, options.environment):
            retire_result(run_dir / cell.cell_id)
            waiting.append(cell)
        else:
            # Wording and place may have changed since; the id says that the content did not.
            kept.append(replace(old, name=cell.name, title=cell.title, number=cell.number))
    return kept, waiting
