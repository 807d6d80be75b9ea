"""Plant every mutant into the cells that must catch it, and say which cell and probe caught each.

The same cells without a plant are the control: what fails there says nothing about a mutant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from harness.cell_folder import Rerun
from harness.execution import Judge
from harness.findings import Status
from harness.matrix import CELL_ID_DIGITS, Cell, load_cells
from harness.mutant_results import Catch, Ending, MutantResult
from harness.mutants import AREAS, CELLS, MUTANTS, Mutant
from harness.pools.base import Pool
from harness.results import CellResult, Event, Outcome
from harness.runner import run_matrix
from mudpuppy.errors import UsageError, near_names

BLAMELESS = frozenset({Outcome.NOT_RUN, Outcome.LOST, Outcome.INFRASTRUCTURE})
"""Outcomes that say nothing about the engine."""


def choose_mutants(words: Sequence[str]) -> tuple[Mutant, ...]:
    """Return the mutants by name, glob or area; all of them where nothing is named.

    Raises:
        UsageError: a word names none.
    """
    chosen: dict[str, Mutant] = {}
    for word in words or ("*",):
        found = {n: m for n, m in MUTANTS.items() if fnmatchcase(n, word) or m.area == word}
        if not found:
            raise UsageError(
                f"no planted bug is called '{word}'{near_names(word, [*MUTANTS, *AREAS])}",
                hint="list them: mudpuppy-pressure mutants --list",
            )
        chosen |= found
    return tuple(mutant for name, mutant in MUTANTS.items() if name in chosen)


def plan_cells(mutants: Iterable[Mutant]) -> tuple[Cell, ...]:
    """Return the controls, in file order, and behind them each mutant's cells with its plant."""
    cells = {cell.name: cell for cell in load_cells(CELLS)}
    mutants = tuple(mutants)
    used = {name for mutant in mutants for name in mutant.cells}
    planned = [cell for cell in cells.values() if cell.name in used]
    planned += [_planted(cells[name], one.name) for one in mutants for name in one.cells]
    return tuple(replace(cell, number=n) for n, cell in enumerate(planned, start=1))


def _planted(cell: Cell, plant: str) -> Cell:
    """Return a cell with a bug in it, and an id of its own."""
    digest = hashlib.sha256(f"{cell.cell_id} {plant}".encode()).hexdigest()
    title = f"{plant} in {cell.name}"
    return replace(
        cell, cell_id=digest[:CELL_ID_DIGITS], name=_key(cell.name, plant), title=title, plant=plant
    )


def _key(cell: str, plant: str) -> str:
    return f"{cell}+{plant}"


def run_mutants(
    mutants: Sequence[Mutant],
    run_dir: Path,
    *,
    judge: Judge,
    cells: Sequence[Cell],
    jobs: int = 1,
    rerun: Rerun = "none",
    on_event: Callable[[Event], None] = lambda event: None,
    pool: Pool | None = None,
) -> tuple[MutantResult, ...]:
    """Run the cells that `plan_cells` gave for the mutants, and say what became of each mutant.

    Raises:
        OutputError: the folder cannot be written, or another runner is using it.
    """
    matrix = run_matrix(
        cells,
        run_dir,
        judge=judge,
        name=CELLS,
        matrix=CELLS,
        jobs=jobs,
        rerun=rerun,
        on_event=on_event,
        pool=pool,
    )
    results = {result.name: result for result in matrix.cells}
    return tuple(conclude(mutant, results) for mutant in mutants)


def conclude(mutant: Mutant, results: Mapping[str, CellResult]) -> MutantResult:
    """Say what became of one mutant.

    Args:
        mutant: the mutant.
        results: of its cells with and without it, by name.
    """
    catches = tuple(
        _catch(results[name], results[_key(name, mutant.name)], name) for name in mutant.cells
    )
    return MutantResult(
        name=mutant.name,
        area=mutant.area,
        what=mutant.what,
        caught_by=mutant.caught_by,
        ending=_ending(mutant, [results[name] for name in mutant.cells], results),
        catches=catches,
    )


def _catch(control: CellResult, planted: CellResult, name: str) -> Catch:
    is_well = control.status is Status.PASSED
    return Catch(
        cell=name,
        outcome=str(planted.outcome),
        codes=_codes(planted),
        message=planted.message,
        control=str(control.outcome),
        control_message="" if is_well else control.message,
        wall_s=0.0 if planted.worker is None else planted.worker.wall_s,
    )


def _codes(result: CellResult) -> tuple[str, ...]:
    return tuple(sorted({str(finding["code"]) for finding in result.findings}))


def _ending(
    mutant: Mutant, controls: Sequence[CellResult], results: Mapping[str, CellResult]
) -> Ending:
    planted = [results[_key(control.name, mutant.name)] for control in controls]
    if any(control.status is not Status.PASSED for control in controls):
        return "not-checked"
    if any(result.outcome in BLAMELESS for result in planted):
        return "not-checked"
    if any(result.status is Status.PASSED for result in planted):
        return "survived"
    said = {word for result in planted for word in (str(result.outcome), *_codes(result))}
    return "caught" if said & set(mutant.caught_by) else "caught-otherwise"
