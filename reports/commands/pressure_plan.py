"""mudpuppy-pressure run: order, repetition and GPUs of a run; a sample that is run both ways."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.text import Text

from harness.cold_sample import Comparison, compare_isolations
from harness.environment import describe_environment
from harness.execution import Judge, Plan, RunOptions
from harness.gpus import find_slots
from harness.history import History
from harness.pools.base import Pool
from harness.selection import Selection
from mudpuppy.errors import UsageError
from reports.text import clean_lines


def add_plan_flags(run: argparse.ArgumentParser) -> None:
    """Add what decides how often, where and how long cells run."""
    run.add_argument(
        "--repeat",
        type=int,
        default=1,
        metavar="N",
        help="run every cell N times; one that passes only sometimes is flaky, which is a failure",
    )
    run.add_argument(
        "-x", "--fail-fast", action="store_true", help="stop at the first cell that fails"
    )
    run.add_argument(
        "--gpus",
        default="auto",
        metavar="LIST",
        help="GPUs to share out, one cell each: numbers with commas, or auto (the default)",
    )
    run.add_argument(
        "--cold-sample",
        type=int,
        metavar="N",
        help="only run N of the cells both ways, warm and spawn, and say whether they agree",
    )


def check_plan(arguments: argparse.Namespace) -> None:
    """Refuse numbers that mean nothing, and flags that the pool does not know.

    Raises:
        UsageError: there is one.
    """
    of_this_machine = {
        "--repeat": arguments.repeat != 1,
        "--fail-fast": arguments.fail_fast,
        "--gpus": arguments.gpus != "auto",
        "--cold-sample": arguments.cold_sample is not None,
    }
    typed = [flag for flag, is_typed in of_this_machine.items() if is_typed]
    if arguments.pool == "ray" and typed:
        raise UsageError(
            f"--pool ray knows no {' and no '.join(typed)}", hint="leave out one or the other"
        )
    for flag, value in (("-j", arguments.jobs), ("--repeat", arguments.repeat)):
        if value < 1:
            raise UsageError(f"{flag} {value}: expected 1 or more")
    if arguments.cold_sample is not None and arguments.cold_sample < 1:
        raise UsageError(f"--cold-sample {arguments.cold_sample}: expected 1 or more cells")


def make_plan(arguments: argparse.Namespace, durations: Mapping[str, float]) -> Plan:
    """Return the plan that a command line asks for.

    Raises:
        UsageError: the GPUs are not written as they must be.
    """
    return Plan(
        durations=durations,
        fail_fast=arguments.fail_fast,
        repeat=arguments.repeat,
        gpus=find_slots(arguments.gpus),
    )


def read_durations(history: Path, selection: Selection) -> dict[str, float]:
    """Return how long the chosen cells took before, in seconds by id; none without a history."""
    if not history.is_file():
        return {}
    with History(history) as known:
        return known.durations(cell.cell_id for cell in selection.chosen)


def run_cold_sample(
    arguments: argparse.Namespace,
    selection: Selection,
    run_dir: Path,
    judge: Judge,
    make_pool: Callable[[str], Pool],
    console: Console,
) -> int:
    """Run a sample of the cells both ways and print whether they agree; return the exit code."""
    seed = arguments.seed or date.today().isoformat()
    options = RunOptions(
        judge=judge,
        plant=arguments.plant,
        jobs=arguments.jobs,
        environment=describe_environment(),
        plan=make_plan(arguments, {}),
    )
    found = compare_isolations(
        selection.chosen, run_dir, options, make_pool, number=arguments.cold_sample, seed=seed
    )
    for one in found:
        console.print(Text(clean_lines(_describe(one))), soft_wrap=True)
    agree = sum(not one.difference for one in found)
    console.print(
        f"{agree} of {len(found)} cells came out the same in a fork and in a clean interpreter "
        f"(drawn by the seed {seed})",
        soft_wrap=True,
        highlight=False,
    )
    return 0 if found and agree == len(found) else 1


def _describe(one: Comparison) -> str:
    times = [
        f"{result.worker.wall_s:.1f} s"
        for result in (one.warm, one.cold)
        if result.worker is not None
    ]
    verdict = f"DIFFERENT: {one.difference}" if one.difference else "the same"
    return f"{one.name}  {one.warm.outcome}  {' / '.join(times)}  {verdict}"
