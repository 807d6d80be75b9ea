"""Shrink the failures of a run: extra cells beside its own, recorded as a search of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from harness.cell_folder import lock_folder
from harness.environment import describe_environment
from harness.execution import Judge, RunOptions
from harness.history import History
from harness.matrix import Cell
from harness.neighbours import combination_of, find_neighbours
from harness.pools.base import Pool
from harness.process import kill_marked
from harness.recorder import Recorder, RunStart, identify_code
from harness.results import CellResult, SmallestFailure
from harness.runner import run_cells
from harness.shrink import (
    Budget,
    Failure,
    Shrinker,
    Watch,
    explain_others,
    failure_of,
)
from mudpuppy.errors import UsageError
from scenarios.loader import LoadedScenarios

SHRINK_FOLDER = "shrink"
"""Folder of the extra cells, inside that of the run."""


@dataclass(frozen=True, kw_only=True)
class ShrinkOptions:
    """What the extra cells share with the run."""

    judge: Judge
    """Judges a cell after its worker ended."""
    pool: Pool
    """Starts the workers."""
    history: History
    """What is known already, and where the extra results go."""
    model: str | None = None
    """Model that was given instead of the one in the file."""
    plant: str | None = None
    """Bug that is planted."""
    watch: Watch = lambda combination, outcome: None
    """Told of every combination that was looked at."""


def shrink_failures(
    loaded: LoadedScenarios,
    cells: Sequence[Cell],
    results: Sequence[CellResult],
    run_dir: Path,
    budget: Budget,
    options: ShrinkOptions,
) -> tuple[SmallestFailure, ...]:
    """Shrink the failing cells that have more than one factor, each kind of failure once.

    A cell of which a smallest failure that was found already is a part, and which fails in the same
    way, is explained by it and costs nothing.

    Args:
        loaded: the file that the cells are from.
        cells: the cells of the matrix.
        results: their results.
        run_dir: folder of the run; the extra cells lie in a folder inside.
        budget: how much may be run, for all of them together.
        options: what the extra cells share with the run.

    Raises:
        OutputError: the folder cannot be written, or somebody else is using it.
    """
    failing = list(_list_failing(cells, results))
    if not failing:
        return ()
    found: list[SmallestFailure] = []
    with _open_laboratory(loaded, run_dir / SHRINK_FOLDER, budget, options, results) as shrinker:
        for cell, failure in failing:
            cause = explain_others(found, cell, failure)
            if cause is None:
                neighbour = find_neighbours(loaded, cell, options.model)
                found.append(shrinker.shrink(cell, failure, neighbour))
            else:
                place = found.index(cause)
                found[place] = replace(cause, cells=(*cause.cells, cell.name))
    return tuple(found)


def shrink_cell(
    loaded: LoadedScenarios, cell: Cell, run_dir: Path, budget: Budget, options: ShrinkOptions
) -> SmallestFailure | None:
    """Shrink one cell, after running it if nothing is known of it; None when it does not fail.

    Raises:
        BudgetSpentError: it would have to be run first, and may not.
        OutputError: the folder cannot be written, or somebody else is using it.
        UsageError: its trial is another than training.
    """
    if cell.trial != "training":
        raise UsageError(
            f"'{cell.name}' is a {cell.trial} trial, and only training can be shrunk",
            hint="name a cell of full.yaml, pairs.yaml or another file of trainings",
        )
    with _open_laboratory(loaded, run_dir / SHRINK_FOLDER, budget, options, ()) as shrinker:
        failure = shrinker.ask(cell)
        if failure is None:
            return None
        neighbour = find_neighbours(loaded, cell, options.model)
        return shrinker.shrink(cell, failure, neighbour)


def _list_failing(
    cells: Sequence[Cell], results: Sequence[CellResult]
) -> Iterator[tuple[Cell, Failure]]:
    """Yield the failing cells that can be shrunk, those with the fewest factors first."""
    by_id = {cell.cell_id: cell for cell in cells}
    failing = [
        (by_id[result.cell_id], failure)
        for result in results
        if result.cell_id in by_id and (failure := failure_of(result)) is not None
    ]
    several = [
        (cell, failure)
        for cell, failure in failing
        if cell.trial == "training" and len(combination_of(cell).factors) > 1
    ]
    yield from sorted(several, key=lambda pair: len(combination_of(pair[0]).factors))


@contextmanager
def _open_laboratory(
    loaded: LoadedScenarios,
    folder: Path,
    budget: Budget,
    options: ShrinkOptions,
    results: Sequence[CellResult],
) -> Iterator[Shrinker]:
    """Give a shrinker that looks cells up in the run and the history, and runs the others."""
    environment = describe_environment()
    code = identify_code(environment)
    own: Mapping[str, CellResult] = {result.cell_id: result for result in results}
    recorder = Recorder(options.history)
    with lock_folder(folder):
        kill_marked(folder)
        recorder.recover(folder)
        start = RunStart(
            name=f"{loaded.form.name}-shrink",
            matrix=loaded.shown,
            kind="shrink",
            plant=options.plant,
            model=options.model,
            environment=environment,
            is_rerun=True,
        )
        run_options = RunOptions(
            judge=options.judge,
            plant=options.plant,
            pool=options.pool,
            environment=environment,
        )

        def run(cell: Cell) -> CellResult:
            nonlocal run_options
            if not run_options.run_id:  # a search in which nothing had to run is none
                run_options = replace(run_options, run_id=recorder.begin(start, [], waiting=1))
            with closing(run_cells([cell], folder, run_options)) as ran:
                (result,) = ran
            recorder.add(result)
            return result

        yield Shrinker(
            known=lambda cell: (
                own.get(cell.cell_id)
                or options.history.known_result(cell.cell_id, code, options.plant)
            ),
            run=run,
            budget=budget,
            watch=options.watch,
        )
        recorder.finish("failed")
