"""mudpuppy-pressure mutants: plant bugs in the engine, one at a time, and see who notices."""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from mudpuppy.errors import UsageError
from mudpuppy.files import write_text_atomic
from reports.matrix_progress import Progress
from reports.mutants import summarise, write_json, write_list, write_markdown, write_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.mutant_results import MutantResult

EPILOG = """\
examples:
  mudpuppy-pressure mutants --list
  mudpuppy-pressure mutants -j 2
  mudpuppy-pressure mutants masking 'merge-*'     an area, a glob
  mudpuppy-pressure mutants eos-masked --rerun all

Every bug is planted into the cells of scenarios/mutants.yaml that must catch it; the same cells
without it are the control. Finished cells are kept until the code changes.
exit codes: 0 every bug was caught by a probe meant for it, 1 one was not, 2 wrong usage, 3 a cell
fails without a bug, or could not be run, 130 interrupted
"""


def add_mutants_command(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `mutants` to the commands of a parser."""
    parser = add_parser(
        "mutants", help="plant bugs into the engine: who notices?", allow_abbrev=False,
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="NAME", help="a bug, a glob or an area")
    parser.add_argument("--list", action="store_true", help="show the bugs and run nothing")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/mutants"), metavar="DIR")
    parser.add_argument("-j", "--jobs", type=int, default=1, metavar="N", help="cells at a time")
    parser.add_argument("--rerun", choices=("none", "failed", "all"), default="none")
    parser.add_argument("--isolation", choices=("warm", "spawn"), default="warm")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the verdict")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Run mutants and controls, write the reports, print the table."""
    from harness.planting import choose_mutants, plan_cells

    mutants = choose_mutants(arguments.names)
    if arguments.list:
        print(write_list([(m.name, m.area, " ".join(m.cells), m.what) for m in mutants]))
        print(f"\n{len(mutants)} bugs")
        return 0
    if arguments.jobs < 1:
        raise UsageError(f"-j {arguments.jobs}: expected 1 or more cells at a time")
    from harness.judge import judge_cell
    from harness.planting import run_mutants
    from harness.pools.warm import make_pool
    from harness.prepare import prepare_model

    cells = plan_cells(mutants)
    console = Console(highlight=False)
    prepare_model(cells, console.print)
    progress = Progress(
        console, [cell.label for cell in cells], quiet=arguments.quiet, jobs=arguments.jobs
    )
    started = time.monotonic()
    with closing(make_pool(arguments.isolation)) as pool, progress:
        results = run_mutants(
            mutants,
            arguments.output,
            judge=judge_cell,
            cells=cells,
            jobs=arguments.jobs,
            rerun=arguments.rerun,
            on_event=progress.on_event,
            pool=pool,
        )
    seconds = time.monotonic() - started
    write_text_atomic(arguments.output / "mutants.json", write_json(results, seconds))
    write_text_atomic(arguments.output / "mutants.md", write_markdown(results, seconds))
    if not arguments.quiet:
        print(write_table(results))
    print(summarise(results, seconds))
    print(f"report: {arguments.output / 'mutants.md'}")
    return exit_code(results)


def exit_code(results: Sequence[MutantResult]) -> int:
    """Return 0 where every mutant was caught as meant, 1 where one was not, else 3."""
    endings = {one.ending for one in results}
    if endings & {"survived", "caught-otherwise"}:
        return 1
    return 3 if "not-checked" in endings else 0
