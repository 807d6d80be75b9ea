"""The table as people read it: on a terminal, and as a page of the repository."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tabulate import tabulate

from benchmarks.frame import Subject
from benchmarks.judge import HELD, NOT_RUN, REACHED, SHORT, WORSE, Outcome

console = Console(width=None if sys.stdout.isatty() else 160)
STYLES = {REACHED: "green", SHORT: "bold red", NOT_RUN: "yellow", HELD: "green", WORSE: "bold red"}
HEAD = ["what", "against", "goal", "ratio", "worst to best", "wall", "ours", "theirs", "result"]
PAGE = """\
# Measured

Written by `make bench`; every figure of a subject comes from one run, in which the sides take
turns. A ratio is ours / theirs under a goal of ≤, theirs / ours under a goal of ≥; the median of
the rounds counts, of processor time where times are compared (`wall` is the same ratio in wall
time). What falls short says so; [decisions.md](../../docs/decisions.md) explains why."""


def subject_table(result: Mapping[str, Any]) -> Table:
    """Return the rows of one subject for a terminal."""
    table = Table(title=result["title"], caption=caption(result), title_justify="left")
    for name in HEAD:
        table.add_column(name)
    for row in result["rows"]:
        *cells, status = _cells(row)
        style = STYLES.get(row["status"])
        said = escape(status)
        table.add_row(*map(escape, cells), f"[{style}]{said}[/]" if style else said)
    return table


def guard_table(lines: Sequence[tuple[str, str, Outcome, str]]) -> Table:
    """Return how every row stands against what was committed."""
    table = Table(title="held against the committed results", title_justify="left")
    for name in ("subject", "what", "against", "ratio", "guard"):
        table.add_column(name)
    for subject, what, now, verdict in lines:
        style = STYLES.get(verdict.partition(":")[0])
        said = escape(verdict)
        shown = f"[{style}]{said}[/]" if style else said
        table.add_row(subject, what, now.against or "-", _number(now.calm), shown)
    return table


def caption(result: Mapping[str, Any]) -> str:
    """Return what must be known beside the figures, in one line."""
    facts = "; ".join(f"{key} {_fact(value)}" for key, value in result.get("facts", {}).items())
    measured = (
        f"{result.get('rounds', 0)} rounds, {result['threads']} thread(s), "
        f"{result['machine']['processor']}, {result['machine']['cores']} cores, load "
        f"{result['load_before']} to {result['load_after']}, {result['seconds']:.0f} s, "
        f"{result['date']}"
    )
    return f"{facts}. {measured}" if facts else measured


def write_page(
    subjects: Mapping[str, Subject], kept: Mapping[str, Mapping[str, Any] | None]
) -> str:
    """Return the whole table in markdown."""
    versions: dict[str, str] = {}
    for result in kept.values():
        versions |= result["versions"] if result is not None else {}
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    parts = [PAGE, f"Versions: {named}.", summary(kept)]
    for name, subject in subjects.items():
        parts += _chapter(subject, kept[name])
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(kept: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Return how many rows reached their goals, and name those that did not."""
    rows = [
        (result["subject"], row) for result in kept.values() if result for row in result["rows"]
    ]
    counts = {
        status: sum(row["status"] == status for _, row in rows)
        for status in (REACHED, SHORT, NOT_RUN)
    }
    lines = [", ".join(f"{count} {status}" for status, count in counts.items()) + "."]
    for status in (SHORT, NOT_RUN):
        lines += [
            f"- {status}: {row['what']} ({subject})"
            + (f", {row['reason']}" if "reason" in row else f", {_ratio(row)} (goal {row['goal']})")
            for subject, row in rows
            if row["status"] == status
        ]
    return "\n".join([*lines[:1], "", *lines[1:]] if lines[1:] else lines)


def _chapter(subject: Subject, result: Mapping[str, Any] | None) -> Iterator[str]:
    yield f"## {subject.title}"
    if result is None:
        yield f"Not measured: `python -m benchmarks.table {subject.name}`."
        return
    rows = [_cells(row) for row in result["rows"]]
    yield tabulate(rows, HEAD, tablefmt="github", disable_numparse=True)
    yield caption(result) + "."


def _cells(row: Mapping[str, Any]) -> list[str]:
    ends = [_number(row.get(key)) for key in ("worst", "best")]
    status = row["status"]
    unit = _unit(row["figure"])
    return [
        row["what"],
        (row.get("against") or "-").partition(":")[0],
        row.get("goal", ""),
        _ratio(row),
        f"{ends[0]} to {ends[1]}" if ends[0] != ends[1] else "",
        _number(row.get("wall")),
        _with_unit(row.get("ours_value"), unit),
        _with_unit(row.get("against_value"), unit),
        f"{status}: {row['reason']}" if row.get("reason") else status,
    ]


def _unit(figure: str) -> str:
    for ending, unit in (("_s", "s"), ("_mb", "MB"), ("_bytes", "B"), ("bytes", "B")):
        if figure.endswith(ending):
            return f" {unit}"
    return ""


def _with_unit(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_number(value)}{unit}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _ratio(row: Mapping[str, Any]) -> str:
    """Return the ratio with as many digits as it takes to see that it misses its goal."""
    ratio = row.get("ratio")
    if row["status"] == SHORT and _number(ratio) in row["goal"]:
        return f"{ratio:.6g}"
    return _number(ratio)


def _fact(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
