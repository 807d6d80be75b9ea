"""mudpuppy-pressure list, explain and schema: which cells there are, and what is known of one."""

from __future__ import annotations

import argparse
import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from functools import cache

from harness.coverage import measure_cells
from harness.matrix import Cell, expand, explain_rules
from harness.selection import Selection, find_cell, select_cells
from harness.slices import take_sample, take_shard
from mudpuppy.errors import UsageError
from reports.commands.pressure_history import add_history_flag, find_past
from reports.coverage_text import write_coverage
from reports.text import clean, clean_lines, write_columns
from scenarios.json_schema import scenario_schema
from scenarios.loader import LoadedScenarios, load_scenarios
from scenarios.schema import Expectation

PROGRAM = "mudpuppy-pressure"
SEED = "seed"
HEADERS = ("#", "name", "expected", "id", "title")

Add = Callable[..., argparse.ArgumentParser]


@dataclass(frozen=True)
class Choice:
    """What a person asked to look at or to run."""

    loaded: LoadedScenarios
    """The scenario file."""
    cells: tuple[Cell, ...]
    """All of its cells."""
    selection: Selection
    """Which of them were chosen."""
    remarks: tuple[str, ...] = ()
    """What has to be said of the choice, so that it can be made again."""


def add_list_commands(add_parser: Add) -> None:
    """Add `list`, `explain` and `schema` to a command line."""
    listing = add_parser("list", help="show the cells of a file", allow_abbrev=False)
    add_selection(listing)
    listing.add_argument(
        "--coverage", action="store_true", help="count which features meet in these cells"
    )
    listing.set_defaults(run=_list)
    explain = add_parser("explain", help="explain one cell", allow_abbrev=False)
    explain.add_argument("words", nargs="+", metavar="[FILE] CELL", help="name, id or number")
    _add_model(explain)
    explain.set_defaults(run=_explain)
    schema = add_parser(
        "schema", help="print the JSON schema of scenario files, for editors", allow_abbrev=False
    )
    schema.set_defaults(run=_schema)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the file and everything that chooses cells of it."""
    parser.add_argument("file", metavar="FILE", help="scenario file, or the name of a shipped one")
    parser.add_argument("--select", action="append", default=[], metavar="WORD", help="only these")
    parser.add_argument("--ignore", action="append", default=[], metavar="WORD", help="not these")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of them, drawn by the seed")
    parser.add_argument(
        "--seed", metavar="WORD", help="draws the sample (default: the date, so others each day)"
    )
    add_history_flag(parser)
    parser.add_argument("--shard", metavar="I/N", help="only the I-th of N parts")
    _add_model(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="model for every cell, instead of the one in the file")


def choose(arguments: argparse.Namespace) -> Choice:
    """Return the cells that a command line chooses; a seed that was not given is noted in it.

    Raises:
        UsageError: the file is wrong, a word matches nothing, or nothing is left.
    """
    loaded = load_scenarios(arguments.file)
    cells = expand(loaded, model=arguments.model)
    ask = find_past(arguments.history)
    selection = select_cells(cells, arguments.select, arguments.ignore, ask)
    remarks = []
    if arguments.sample is not None:
        before = len(selection.chosen)
        if arguments.seed is None:
            arguments.seed = date.today().isoformat()
            arguments.typed = [*arguments.typed, "--seed", arguments.seed]
        selection = take_sample(selection, arguments.sample, arguments.seed)
        remarks.append(
            f"{len(selection.chosen)} of {before} cells, drawn by the seed {arguments.seed}: "
            f"the same again with --sample {arguments.sample} --seed {arguments.seed}"
        )
    elif arguments.seed is not None:
        raise UsageError("--seed draws a sample: give --sample N as well")
    if arguments.shard is not None:
        selection = take_shard(selection, arguments.shard)
        remarks.append(f"shard {arguments.shard}: {len(selection.chosen)} cells")
    return Choice(loaded, cells, selection, tuple(remarks))


def write_cells(cells: Iterable[Cell]) -> str:
    """Return a table of cells."""
    rows = [
        (
            str(cell.number),
            clean(cell.name),
            _expectation(cell.expect),
            cell.cell_id,
            clean(cell.title),
        )
        for cell in cells
    ]
    return write_columns(rows, HEADERS, right=(0,))


def write_dry_run(choice: Choice, selection: Selection) -> str:
    """Return what a run would do: the cells it would run, and why it would leave others out."""
    lines = [write_cells(selection.chosen) if selection.chosen else "nothing would run", ""]
    lines += [f"{len(selection.chosen)} of {len(choice.cells)} cells would run", *choice.remarks]
    reasons = Counter(why for _, why in selection.left_out)
    lines += [f"{count} would not: {why}" for why, count in reasons.most_common()]
    return clean_lines("\n".join(lines))


def _list(arguments: argparse.Namespace) -> int:
    """Print the selected cells as a table, or what they cover."""
    choice = choose(arguments)
    loaded, chosen = choice.loaded, choice.selection.chosen
    if arguments.coverage:
        if loaded.form.covering is None:
            raise UsageError(
                f"{loaded.shown} has no covering array to measure",
                hint=f"{PROGRAM} list pairs --coverage",
            )
        found = measure_cells(loaded.form.covering, chosen).to_json()
        print(clean_lines(write_coverage(found)))
        return 0 if found["share"] == 1.0 else 1
    print(write_cells(chosen))
    print(clean_lines(f"\n{len(chosen)} cells of {loaded.shown} ({loaded.form.name})"))
    for remark in choice.remarks:
        print(clean_lines(remark))
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    """Print everything that is known of one cell before it runs, and how to run it."""
    *files, word = arguments.words
    if len(files) > 1:
        raise UsageError(
            f"expected one file and one cell, got: {' '.join(arguments.words)}",
            hint=f"{PROGRAM} explain seed lora-fp16",
        )
    loaded = load_scenarios(files[0] if files else SEED)
    cell = find_cell(expand(loaded, model=arguments.model), word)
    model = ["--model", arguments.model] if arguments.model else []
    again = [PROGRAM, "run", loaded.shown, "--select", cell.name, "--rerun", "all", *model]
    item = ["pytest", "-m", "pressure", "--pressure-matrix", loaded.shown]
    item += ["--pressure-select", cell.name]
    item += ["--pressure-model", arguments.model] if arguments.model else []
    lines = [f"{cell.number}. {cell.title} ({cell.name}, {cell.cell_id})", ""]
    lines += [
        f"expected  {_expectation(cell.expect)}",
        f"time      at most {cell.timeout_s:g} s",
        "",
    ]
    if cell.trial != "training":
        options = (f"  {name}: {value}" for name, value in cell.options.items())
        lines += [f"trial     {cell.trial}", *options, ""]
    lines += ["settings", *(f"  {key}: {value}" for key, value in cell.config.items()), ""]
    lines += ["what the rule table says", *_indent(explain_rules(cell)), ""]
    lines += ["run just this cell", f"  {shlex.join(again)}", f"  {shlex.join(item)}"]
    print(clean_lines("\n".join(lines)))
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    """Print the schema as it is checked in under docs/."""
    print(json.dumps(scenario_schema(), indent=2))
    return 0


@cache
def _expectation(expect: Expectation) -> str:
    words = [expect.outcome, *([expect.code] if expect.code else [])]
    words += ["early"] if expect.stops_early else []
    return " ".join([*words, *expect.findings])


def _indent(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
