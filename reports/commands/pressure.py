"""mudpuppy-pressure: run the pressure matrix, list it, explain a cell, show what changed."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.cell_folder import lock_folder
from harness.coverage import measure_cells
from harness.execution import Judge
from harness.history import History
from harness.needs import leave_out_unmet, look_at_machine
from harness.pools.warm import ISOLATIONS, make_pool
from harness.prepare import check_plant, prepare_model
from harness.recorder import Recorder
from harness.results import MatrixResult, Outcome
from harness.runner import Dispatch, run_matrix
from harness.shrink_run import ShrinkOptions
from mudpuppy.errors import MudpuppyError, OutputError, UsageError
from mudpuppy.files import write_text_atomic
from mudpuppy.interruption import INTERRUPTED, raising_when_terminated
from mudpuppy.parser import FriendlyParser
from reports.commands.pressure_audit import run_audit
from reports.commands.pressure_history import add_history_commands
from reports.commands.pressure_list import (
    PROGRAM,
    Choice,
    add_list_commands,
    add_selection,
    choose,
    write_dry_run,
)
from reports.commands.pressure_mutants import add_mutants_command
from reports.commands.pressure_plan import (
    add_plan_flags,
    check_plan,
    make_plan,
    read_durations,
    run_cold_sample,
)
from reports.commands.pressure_shrink import (
    add_shrink_command,
    add_shrink_flag,
    check_budget,
    shrink_matrix,
)
from reports.matrix_console import print_verdict
from reports.matrix_json import write_json
from reports.matrix_markdown import write_markdown
from reports.matrix_progress import Progress
from reports.text import clean_lines
from scenarios.loader import LoadedScenarios

EPILOG = """\
examples:
  mudpuppy-pressure run scenarios/seed.yaml              every cell that has no result yet
  mudpuppy-pressure run seed -j 4 --select method=qlora  four at a time, only QLoRA
  mudpuppy-pressure run seed --select 'lora-*' --ignore 7 --rerun failed
  mudpuppy-pressure run seed --model Qwen/Qwen2.5-0.5B-Instruct
  mudpuppy-pressure run full --sample 30 --dry-run       thirty cells, others each day
  mudpuppy-pressure run full --shard 2/8 --select feature=packing
  mudpuppy-pressure run rejections --audit-rejections    what is rejected, and would have worked?
  mudpuppy-pressure list seed
  mudpuppy-pressure explain lora-streaming-rejected
  mudpuppy-pressure history lora-fp16
  mudpuppy-pressure diff last~1 last
  mudpuppy-pressure shrink pairs qlora-bf16-mix-03

A word of --select and --ignore is a glob on names, an id, a number, setting=value (also
feature=packing, feature=none, expect=rejected), or asks the history for the last result: failed,
crashed, passed, new, slow (the slowest tenth). Words joined by a comma must all hold; several
options are alternatives.
exit codes: 0 all as expected, 1 failures, 2 wrong usage, 3 something crashed, timed out or could
not be checked, 130 interrupted (finished cells stay finished: run the same command again)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = _parser().parse_args(words, argparse.Namespace(typed=words))
        with raising_when_terminated():
            return int(arguments.run(arguments))
    except MudpuppyError as error:
        print(f"{PROGRAM}: {clean_lines(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 3
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception:  # noqa: BLE001 - python would exit with 1, which means failures
        traceback.print_exc()
        return MudpuppyError.exit_code


def _parser() -> FriendlyParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = FriendlyParser(
        prog=PROGRAM, description=__doc__, epilog=EPILOG, formatter_class=form, allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run the cells of a file", allow_abbrev=False))
    add_list_commands(commands.add_parser)
    add_history_commands(commands.add_parser)
    add_mutants_command(commands.add_parser)
    add_shrink_command(commands.add_parser)
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    add_selection(run)
    run.add_argument("-o", "--output", metavar="DIR", help="folder (default runs/NAME)")
    run.add_argument("-j", "--jobs", type=int, default=1, metavar="N", help="cells at a time")
    run.add_argument(
        "--rerun",
        choices=("none", "failed", "all"),
        default="none",
        help="which finished cells run again: none of them, those that did not pass, or all",
    )
    run.add_argument(
        "--isolation",
        choices=ISOLATIONS,
        default="warm",
        help="a cell is a fork of a process that has imported everything, or a clean interpreter",
    )
    run.add_argument(
        "--pool",
        choices=("local", "ray"),
        default="local",
        help="run cells here, or on every host of a Ray cluster (-j is then cells per host)",
    )
    run.add_argument(
        "--address",
        metavar="ADDRESS",
        help="the Ray cluster: auto, HOST:PORT or ray://HOST:PORT; by default one is started here",
    )
    add_plan_flags(run)
    run.add_argument("--plant", metavar="NAME", help="plant a bug into the engine: who notices?")
    run.add_argument(
        "--allow",
        action="append",
        default=[],
        choices=("network",),
        help="let cells that need it use the network; without it they are not run",
    )
    run.add_argument(
        "--audit-rejections",
        action="store_true",
        help="afterwards run the rejected cells by force: would some have worked?",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="only show which cells would run, and which not"
    )
    add_shrink_flag(run)
    run.add_argument("-q", "--quiet", action="store_true", help="only the verdict")
    run.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Run cells, write both reports, print the verdict."""
    check_plant(arguments.plant)
    check_budget(arguments.shrink)
    check_plan(arguments)
    choice = choose(arguments)
    loaded, cells, selection = choice.loaded, choice.cells, choice.selection
    machine = look_at_machine(arguments.allow, wanted=selection.chosen)
    selection = leave_out_unmet(selection, machine)
    if arguments.dry_run:
        print(write_dry_run(choice, selection))
        return 0
    run_dir = _run_folder(arguments, loaded)
    console = Console(highlight=False)
    for remark in choice.remarks:
        console.print(clean_lines(remark), markup=False)
    _require_writable(run_dir)
    prepare_model(selection.chosen, console.print)
    if arguments.cold_sample is not None:
        with lock_folder(run_dir):
            return run_cold_sample(arguments, selection, run_dir, _load_judge(), make_pool, console)
    durations = read_durations(arguments.history, selection)
    progress = Progress(
        console,
        [cell.label for cell in cells],
        quiet=arguments.quiet,
        durations=durations,
        jobs=arguments.jobs,
    )
    try:
        with (
            History(arguments.history, create=True) as history,
            closing(make_pool(arguments.isolation)) as pool,
        ):
            recorder = Recorder(history)
            with progress:
                matrix = run_matrix(
                    selection.chosen,
                    run_dir,
                    judge=_load_judge(),
                    name=loaded.form.name,
                    matrix=loaded.shown,
                    jobs=arguments.jobs,
                    rerun=arguments.rerun,
                    plant=arguments.plant,
                    model=arguments.model,
                    left_out=selection.left_out,
                    on_event=progress.on_event,
                    recorder=recorder,
                    dispatch=_dispatch(arguments),
                    pool=pool,
                    plan=make_plan(arguments, durations),
                )
            if arguments.audit_rejections:
                audit = run_audit(
                    selection.chosen,
                    run_dir,
                    machine=machine,
                    judge=_load_judge(),
                    pool=pool,
                    jobs=arguments.jobs,
                    console=console,
                    quiet=arguments.quiet,
                )
                matrix = replace(matrix, audit=audit)
            shrinking = ShrinkOptions(
                judge=_load_judge(),
                pool=pool,
                history=history,
                model=arguments.model,
                plant=arguments.plant,
            )
            matrix = shrink_matrix(cells, loaded, matrix, arguments.shrink, shrinking)
    except KeyboardInterrupt:
        _say_how_to_go_on(arguments.typed)
        return INTERRUPTED
    if recorder.problem:
        print(f"{PROGRAM}: {clean_lines(recorder.advice)}", file=sys.stderr)
    matrix = replace(matrix, coverage=_coverage(choice, matrix))
    report = _write_reports(run_dir, matrix)
    print_verdict(console, matrix, str(report), quiet=arguments.quiet)
    return matrix.exit_code


def _coverage(choice: Choice, matrix: MatrixResult) -> dict[str, Any] | None:
    """Return which features meet in the cells that ran, where there is something to cover."""
    covering = choice.loaded.form.covering
    if covering is None:
        return None
    ran = {one.cell_id for one in matrix.cells if one.outcome is not Outcome.NOT_RUN}
    cells = [cell for cell in choice.cells if cell.cell_id in ran]
    return measure_cells(covering, cells).to_json()


def _dispatch(arguments: argparse.Namespace) -> Dispatch | None:
    """Return what runs the cells on other hosts, where that was asked for.

    Raises:
        UsageError: an address without the pool that it belongs to.
    """
    if arguments.pool == "local":
        if arguments.address is not None:
            raise UsageError("--address is the address of a Ray cluster", hint="add --pool ray")
        return None
    from harness.pools.ray_pool import RayOptions, run_cells_on_ray

    options = RayOptions(
        address=arguments.address, jobs=arguments.jobs, isolation=arguments.isolation
    )
    return partial(run_cells_on_ray, options)


def _run_folder(arguments: argparse.Namespace, loaded: LoadedScenarios) -> Path:
    """Return where results go; runs with a planted bug do not mix with honest ones."""
    if arguments.output:
        return Path(arguments.output)
    suffix = f"-{arguments.plant}" if arguments.plant else ""
    return Path("runs") / f"{loaded.form.name}{suffix}"


def _require_writable(run_dir: Path) -> None:
    """Refuse a hopeless folder before a model is made for it.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{run_dir}: cannot be written: {error.strerror}", hint="give another folder with -o"
        ) from None


def _load_judge() -> Judge:
    """Import the judge, which brings every probe; only a run needs it."""
    from harness.judge import judge_cell

    return judge_cell


def _write_reports(run_dir: Path, matrix: MatrixResult) -> Path:
    """Write `report.json` and `report.md`; return the latter, which is for people."""
    report = run_dir / "report.md"
    try:
        write_text_atomic(run_dir / "report.json", write_json(matrix))
        write_text_atomic(report, write_markdown(matrix))
    except OSError as error:
        raise MudpuppyError(f"{run_dir}: the report cannot be written: {error}") from None
    return report


def _say_how_to_go_on(typed: Sequence[str]) -> None:
    """Say what to type; without --rerun, whose results of this run are to be kept."""
    words = [PROGRAM]
    for before, word in pairwise(["", *typed]):
        if word != "--rerun" and before != "--rerun" and not word.startswith("--rerun="):
            words.append(word)
    print(
        f"{PROGRAM}: interrupted; running cells were stopped, finished cells stay finished\n"
        f"  go on with: {shlex.join(words)}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    raise SystemExit(main())
