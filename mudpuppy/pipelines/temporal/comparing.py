"""`mud-puppy temporal compare`: several evaluations of the same questions in one table."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from mudpuppy.errors import UsageError, printable
from mudpuppy.pipelines.temporal.evaluating import RESULTS_SCHEMA_VERSION
from mudpuppy.pipelines.temporal.judging import REFUSED, RIGHT
from mudpuppy.pipelines.temporal.layout import UNLEARN

HELP = "put the results of several evaluations beside each other, with intervals"
EPILOG = """\
examples:
  mud-puppy temporal compare refusal=a/results.json npo=b/results.json dpo=c/results.json
  mud-puppy temporal compare */results.json --format markdown

A results file is what `evaluate --output FILE` writes. Where it lies in its run's folder, the time
of the training is in the table, too. All files must be about the same questions.
"""
SHARES = {
    "retain right": ("retain", "right"),
    "retain refused": ("retain", "false_refusals"),
    "unlearn refused": ("unlearn", "refused"),
    "leaked": ("unlearn", "leaked"),
    "made up": ("unlearn", "made_up"),
}
"""Columns, by where the results file has them."""
TRAINING = "train_results.json"
"""What a run leaves beside its results."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One results file."""

    name: str
    """What the table calls it."""
    results: Mapping[str, Any]
    """What the file holds."""
    train_seconds: float | None
    """Time of the training, where it is known."""

    @property
    def questions(self) -> list[tuple[str, str]]:
        """Kind and text of every question."""
        return [(one["kind"], one["question"]) for one in self.results["answers"]]

    @property
    def is_good(self) -> list[bool]:
        """Whether each answer is what it should be."""
        return [
            one["word"] == (REFUSED if one["kind"] == UNLEARN else RIGHT)
            for one in self.results["answers"]
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the arguments of the command."""
    text = "results file, or NAME=FILE; the first is what the others are held against"
    parser.add_argument("results", nargs="+", metavar="[NAME=]FILE", help=text)
    parser.add_argument(
        "--format",
        choices=("text", "markdown", "json"),
        default="text",
        help="how to write the table (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the table and return 0.

    Raises:
        UsageError: a file cannot be used, or they are about different questions.
    """
    found = [read_results(word) for word in args.results]
    require_same_questions(found)
    if args.format == "json":
        print(json.dumps([to_json(one, found[0]) for one in found], indent=2))
        return 0
    print(printable(to_table(found, "github" if args.format == "markdown" else "simple")))
    return 0


def read_results(word: str) -> Evaluated:
    """Return a results file, named as the command line names it.

    Raises:
        UsageError: it cannot be read, or is no results file of this version.
    """
    name, sign, path_word = word.partition("=")
    path = Path(path_word if sign else word)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"{path} cannot be read: {reason}",
            hint="name what `mud-puppy temporal evaluate --output FILE` wrote",
        ) from None
    version = results.get("schema_version") if isinstance(results, dict) else None
    if version != RESULTS_SCHEMA_VERSION or not results.get("answers"):
        raise UsageError(
            f"{path} is no results file of version {RESULTS_SCHEMA_VERSION}",
            hint="evaluate again: mud-puppy temporal evaluate --output FILE",
        )
    shown = name if sign else path.parent.name if path.stem == "results" else path.stem
    return Evaluated(name=shown or path.stem, results=results, train_seconds=_seconds(path))


def _seconds(path: Path) -> float | None:
    """Return how long the run beside a results file trained; None where nothing tells."""
    try:
        figures = json.loads((path.parent / TRAINING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    seconds = figures.get("train_runtime") if isinstance(figures, dict) else None
    return float(seconds) if isinstance(seconds, int | float) else None


def require_same_questions(found: Sequence[Evaluated]) -> None:
    """Refuse results about different questions: their shares say nothing about each other.

    Raises:
        UsageError: they are.
    """
    first = found[0]
    for other in found[1:]:
        if other.questions != first.questions:
            counts = f"{len(first.questions)} and {len(other.questions)}"
            raise UsageError(
                f"{first.name} and {other.name} were asked different questions ({counts})",
                hint="evaluate both with the same --test_file and --limit",
            )


def to_json(one: Evaluated, first: Evaluated) -> dict[str, Any]:
    """Return a row with every share, its interval, and how it differs from the first."""
    better, worse, chance = compare(one, first)
    return {
        "name": one.name,
        "grade": one.results["grade"],
        "train_seconds": one.train_seconds,
        "answer_seconds": one.results["seconds"],
        "metrics": one.results["metrics"],
        "against": first.name,
        "better": better,
        "worse": worse,
        "p_value": chance,
    }


def to_table(found: Sequence[Evaluated], style: str) -> str:
    """Return the table; shares stand with their 95% intervals."""
    rows = []
    for one in found:
        shares = [one.results["metrics"][group][name] for group, name in SHARES.values()]
        better, worse, chance = compare(one, found[0])
        seconds = "-" if one.train_seconds is None else f"{one.train_seconds:.0f}"
        rows.append(
            [
                one.name,
                *map(_share, shares),
                "-" if one is found[0] else f"+{better} -{worse} (p {chance:.2g})",
                seconds,
                one.results["grade"],
            ]
        )
    head = ["", *SHARES, f"against {found[0].name}", "training s", "grade"]
    return tabulate(rows, headers=head, tablefmt=style, disable_numparse=True)


def _share(share: Mapping[str, Any]) -> str:
    low, high = share["interval_95"]
    return f"{share['share']:.0%} ({low:.0%}-{high:.0%})"


def compare(one: Evaluated, other: Evaluated) -> tuple[int, int, float]:
    """Return how many answers of `one` are better and worse, and how likely chance does that.

    The probability is that of McNemar's test, exact: of the questions in which both differ, each
    side wins one as a coin falls.
    """
    pairs = list(zip(one.is_good, other.is_good, strict=True))
    better = sum(mine and not theirs for mine, theirs in pairs)
    worse = sum(theirs and not mine for mine, theirs in pairs)
    total, fewer = better + worse, min(better, worse)
    tail = sum(math.comb(total, n) for n in range(fewer + 1)) / 2**total
    return better, worse, min(1.0, 2 * tail)
