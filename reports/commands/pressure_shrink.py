"""mudpuppy-pressure shrink: the smallest combination that fails as a cell does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from harness.execution import Judge
from harness.history import History
from harness.matrix import Cell, expand
from harness.neighbours import Combination
from harness.pools.warm import make_pool
from harness.prepare import check_plant, prepare_model
from harness.results import MatrixResult
from harness.selection import find_cell
from harness.shrink import DEFAULT_CELLS, DEFAULT_SECONDS, Budget, BudgetSpentError
from harness.shrink_run import ShrinkOptions, shrink_cell, shrink_failures
from mudpuppy.errors import UsageError
from reports.commands.pressure_history import Add, add_history_flag
from reports.matrix_summary import describe_smallest
from reports.text import clean
from scenarios.loader import LoadedScenarios, load_scenarios

EPILOG = """\
examples:
  mudpuppy-pressure shrink pairs qlora-bf16-mix-03
  mudpuppy-pressure shrink pairs 17 --budget 60

Known results of the same code cost nothing. Everything that runs is recorded in the history.
exit codes: 0 the cell does not fail, 1 it does, 2 wrong usage, 3 it could not be found out
"""


def add_shrink_command(add_parser: Add) -> None:
    """Add `shrink` to the commands of a parser."""
    shrink = add_parser(
        "shrink", help="find the smallest failing part of a cell", allow_abbrev=False,
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    shrink.add_argument("file", metavar="FILE", help="scenario file, or the name of a shipped one")
    shrink.add_argument("cell", metavar="CELL", help="name, id or number")
    shrink.add_argument(
        "--budget", type=int, default=DEFAULT_CELLS, metavar="N",
        help="run at most so many cells (default %(default)s)",
    )  # fmt: skip
    shrink.add_argument(
        "--seconds", type=float, default=DEFAULT_SECONDS, metavar="S",
        help="start none after so many seconds (default %(default)g)",
    )  # fmt: skip
    shrink.add_argument("-o", "--output", metavar="DIR", help="folder (default runs/NAME)")
    shrink.add_argument("--plant", metavar="NAME", help="plant a bug into the engine")
    shrink.add_argument("--model", help="model for the cells, instead of the one in the file")
    add_history_flag(shrink)
    shrink.set_defaults(run=_shrink)


def check_budget(budget: int | None) -> None:
    """Refuse a budget that is none.

    Raises:
        UsageError: it is negative.
    """
    if budget is not None and budget < 0:
        raise UsageError(f"a budget of {budget} cells: expected 0 or more")


def add_shrink_flag(run: argparse.ArgumentParser) -> None:
    """Add the flag of `run` that shrinks what failed."""
    run.add_argument(
        "--shrink", nargs="?", type=int, const=DEFAULT_CELLS, metavar="N",
        help="find the smallest combinations that fail, with at most N extra cells "
        f"(default {DEFAULT_CELLS})",
    )  # fmt: skip


def print_step(combination: Combination, outcome: str) -> None:
    """Print one combination that was looked at."""
    print(f"  {clean(outcome):<24}  {clean(str(combination))}", flush=True)


def shrink_matrix(
    cells: Sequence[Cell],
    loaded: LoadedScenarios,
    matrix: MatrixResult,
    budget: int | None,
    options: ShrinkOptions,
) -> MatrixResult:
    """Return a run's result with what its failures were shrunk to, where that was asked for."""
    if budget is None:
        return matrix
    smallest = shrink_failures(
        loaded, cells, matrix.cells, Path(matrix.folder), Budget(budget), options
    )
    return replace(matrix, smallest=smallest)


def _load_judge() -> Judge:
    """Import the judge, which brings every probe; only what runs cells needs it."""
    from harness.judge import judge_cell

    return judge_cell


def _shrink(arguments: argparse.Namespace) -> int:
    """Shrink one cell and print what is left of it."""
    check_plant(arguments.plant)
    check_budget(arguments.budget)
    loaded = load_scenarios(arguments.file)
    cell = find_cell(expand(loaded, model=arguments.model), arguments.cell)
    prepare_model([cell], print)
    suffix = f"-{arguments.plant}" if arguments.plant else ""
    run_dir = Path(arguments.output or Path("runs") / f"{loaded.form.name}{suffix}")
    print(f"{clean(cell.name)}: looking for its smallest part that fails in the same way")
    with History(arguments.history, create=True) as history, closing(make_pool("warm")) as pool:
        options = ShrinkOptions(
            judge=_load_judge(),
            pool=pool,
            history=history,
            model=arguments.model,
            plant=arguments.plant,
            watch=print_step,
        )
        budget = Budget(arguments.budget, arguments.seconds)
        try:
            found = shrink_cell(loaded, cell, run_dir, budget, options)
        except BudgetSpentError:
            raise UsageError(
                f"nothing is known of '{cell.name}' with this code, and nothing may be run",
                hint="give a larger --budget",
            ) from None
    if found is None:
        print("it does not fail: there is nothing to shrink")
        return 0
    print("\n".join(describe_smallest(found)))
    return 1
