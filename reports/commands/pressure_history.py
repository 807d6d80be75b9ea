"""mudpuppy-pressure history and diff: every run ever, one cell over time, what changed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.history import DEFAULT_PATH, History
from harness.history_diff import compare_runs
from harness.history_find import WORDS, find_run
from harness.history_rows import LastResult
from harness.selection import AskHistory
from mudpuppy.errors import UsageError
from reports.history_console import write_cell, write_comparison, write_runs

HISTORY_SCHEMA_VERSION = 1
"""Version of what `--json` prints."""
SHOWN = 20
"""Runs or results that are shown unless `-n` says otherwise."""
HISTORY_EPILOG = """\
examples:
  mudpuppy-pressure history                   the newest runs
  mudpuppy-pressure history lora-dora         every result of a cell, the newest first
  mudpuppy-pressure history 'qlora-*' -n 5    of several cells, five each
"""
DIFF_EPILOG = """\
examples:
  mudpuppy-pressure diff last~1 last          what changed since the run before
  mudpuppy-pressure diff 20260201 last        since the only run whose id begins like that
  mudpuppy-pressure diff runs/full runs/other

exit codes: 0 nothing fails anew, 1 something does, 2 wrong usage
"""

Add = Callable[..., argparse.ArgumentParser]


def add_history_commands(add_parser: Add) -> None:
    """Add `history` and `diff` to the commands of a parser."""
    raw = argparse.RawDescriptionHelpFormatter
    history = add_parser(
        "history", help="show the runs, or a cell over time", allow_abbrev=False,
        epilog=HISTORY_EPILOG, formatter_class=raw,
    )  # fmt: skip
    history.add_argument("cell", nargs="?", metavar="CELL", help="a name, an id or a glob on them")
    history.add_argument(
        "-n", "--limit", type=int, default=SHOWN, metavar="N",
        help="show so many (default %(default)s; 0 shows all)",
    )  # fmt: skip
    history.add_argument("--matrix", metavar="NAME", help="only runs of this matrix")
    _add_common(history)
    history.set_defaults(run=_history)
    diff = add_parser(
        "diff", help="show what changed between two runs", allow_abbrev=False,
        epilog=DIFF_EPILOG, formatter_class=raw,
    )  # fmt: skip
    diff.add_argument("old", metavar="RUN", help=f"the run before: {WORDS}")
    diff.add_argument("new", metavar="RUN", help="the run to look at")
    diff.add_argument("--matrix", metavar="NAME", help="matrix that `last` is about")
    _add_common(diff)
    diff.set_defaults(run=_diff)


def add_history_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names the history."""
    parser.add_argument(
        "--history",
        type=Path,
        default=DEFAULT_PATH,
        metavar="FILE",
        help="where every run is recorded (default %(default)s)",
    )


def find_past(path: Path) -> AskHistory | None:
    """Return what looks up how cells ended last, or None where there is no history yet."""
    if not path.is_file():
        return None

    def ask(cell_ids: Iterable[str]) -> Mapping[str, LastResult]:
        with History(path) as history:
            return history.last_results(cell_ids)

    return ask


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_history_flag(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def _history(arguments: argparse.Namespace) -> int:
    """Print the runs, or the results of one or several cells."""
    if arguments.limit < 0:
        raise UsageError(f"-n {arguments.limit}: expected 0 or more")
    limit = arguments.limit or None
    with History(arguments.history) as history:
        if arguments.cell is None:
            return _print_runs(history, arguments, limit)
        return _print_cells(history, arguments, limit)


def _print_runs(history: History, arguments: argparse.Namespace, limit: int | None) -> int:
    total = history.count_runs(name=arguments.matrix)
    if not total and arguments.matrix:
        names = ", ".join(history.matrix_names()) or "none"
        raise UsageError(
            f"{history.path}: no run of a matrix '{arguments.matrix}'", hint=f"there are: {names}"
        )
    runs = history.runs(name=arguments.matrix, limit=limit)
    if arguments.json:
        _print_json({"runs": [asdict(run) for run in runs], "total": total})
    else:
        print(write_runs(runs, total))
    return 0


def _print_cells(history: History, arguments: argparse.Namespace, limit: int | None) -> int:
    cells: list[dict[str, Any]] = []
    texts: list[str] = []
    for cell_id in history.cells(arguments.cell):
        results = history.results_of(cell_id, name=arguments.matrix, limit=limit)
        if not results:
            continue
        total = history.count_results(cell_id, name=arguments.matrix)
        texts.append(write_cell(results, total))
        cells.append({"cell_id": cell_id, "total": total, "results": [asdict(r) for r in results]})
    if not cells:
        raise UsageError(
            f"{history.path}: '{arguments.cell}' has no result in matrix '{arguments.matrix}'",
            hint="leave out --matrix",
        )
    if arguments.json:
        _print_json({"cells": cells})
    else:
        print("\n\n".join(texts))
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    """Print how two runs differ."""
    with History(arguments.history) as history:
        old = find_run(history, arguments.old, name=arguments.matrix)
        new = find_run(history, arguments.new, name=arguments.matrix)
        if old.key == new.key:
            raise UsageError(
                f"'{arguments.old}' and '{arguments.new}' are the same run: {new.run_id}",
                hint="mudpuppy-pressure diff last~1 last",
            )
        comparison = compare_runs(history, old, new)
    if arguments.json:
        _print_json({**asdict(comparison), "exit_code": comparison.exit_code})
    else:
        print(write_comparison(comparison))
    return comparison.exit_code


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps({"schema_version": HISTORY_SCHEMA_VERSION, **value}, indent=2))
