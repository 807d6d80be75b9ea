"""A history of a million results: how long it takes to be asked what people and reports ask.

The results are made up, written with executemany into a temporary file with the history's own
schema: once as 800 runs of 1250 cells (the product matrix, every night for two years), once as ten
runs of 100,000 cells. One in a hundred fails, each with a finding. Every question is asked several
times, each with a new connection, whose cache is empty; whole commands are processes of their own.
"""

from __future__ import annotations

import json
import random
import sqlite3
import statistics
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.children import command
from benchmarks.frame import Figures, Plan, Row, Sides, Subject, Work, at_most, interleave
from harness.history import History
from harness.history_diff import compare_runs
from harness.history_find import find_run

GOAL_S = 1.0
RESULTS = 1_000_000
SHAPES = {"a product matrix, many runs": 1250, "a huge matrix, few runs": 100_000}
"""Cells in a run; the number of runs follows from the number of results."""
METRICS = json.dumps({"loss_before": 4.25, "loss_after": 3.875, "steps": 4.0, "train_s": 0.53,
                      "reload_s": 0.11, "peak_rss_bytes": 431415296.0})  # fmt: skip
MESSAGE = "every probe that had to answer did, and none found anything; 41 passed, 23 did not apply"


def fill(path: Path, cells: int, runs: int) -> None:
    """Write a history with runs x cells results."""
    History(path, create=True).close()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA synchronous = OFF")
    settings = json.dumps({"model": "tiny:llama", "method": "lora", "precision": "bf16"} | {
        f"setting_{number}": number for number in range(40)})  # fmt: skip
    raw.executemany(
        "INSERT INTO cells (cell_id, name, title, settings, expectation) VALUES (?, ?, ?, ?, '{}')",
        (
            (cell_id(n), f"lora-bf16-feature-{n}", f"LoRA + feature {n}", settings)
            for n in range(cells)
        ),
    )
    chance = random.Random(7)
    for run in range(1, runs + 1):
        code = f"{run // 3:012x}"  # three runs of each state of the code
        day = f"2026{run // 31 % 12 + 1:02}{run % 28 + 1:02}"
        raw.execute(
            "INSERT INTO runs (run_id, name, started, finished, verdict, revision, code, "
            "environment) VALUES (?, 'full', ?, ?, 'failed', ?, ?, '{}')",
            (f"{day}-{run:06}-abcd", "2026-02-01T10:00:00+00:00", "2026-02-01T10:18:20+00:00",
             code, code),
        )  # fmt: skip
        raw.executemany(
            "INSERT INTO results (run_key, cell_key, attempt, outcome, status, message, ending, "
            "started, finished, wall_s, cpu_s, peak_rss_bytes, metrics) "
            "VALUES (?, ?, 1, ?, ?, ?, 'exit code 0', ?, ?, ?, ?, ?, ?)",
            _results(run, cells, chance),
        )
    raw.execute(
        "INSERT INTO findings SELECT result_key, 0, 'MPD203', 'adapter-never-trained', '.', "
        "'error', '12 of 12 adapter tensors never moved' FROM results WHERE status = 'failed'"
    )
    raw.commit()
    raw.close()


def _results(run: int, cells: int, chance: random.Random) -> Iterator[tuple[Any, ...]]:
    for cell in range(1, cells + 1):
        status = "failed" if chance.random() < 0.01 else "passed"
        wall_s = round(chance.gauss(1.0, 0.05) + (chance.random() < 0.02) * 2, 3)
        at = "2026-02-01T10:00:00+00:00"
        yield (run, cell, status, status, MESSAGE, at, at, wall_s, wall_s, 4 * 10**8, METRICS)


def cell_id(number: int) -> str:
    """Return the id of the cell with a number."""
    return sha256(str(number).encode()).hexdigest()[:12]


def questions(cells: int) -> dict[str, Callable[[History], object]]:
    """Return what is asked, by what a person calls it."""
    ids = [cell_id(number) for number in range(cells)]

    def compare(history: History, old: str) -> object:
        known = history.count_runs()
        back = min(int(old.partition("~")[2]), known - 1)
        return compare_runs(history, find_run(history, f"last~{back}"), find_run(history, "last"))

    return {
        "history: the newest 20 runs": lambda h: h.runs(limit=20),
        "history: all runs": lambda h: h.runs(),
        "history CELL: every result": lambda h: h.results_of(h.cells("lora-bf16-feature-77")[0]),
        "history GLOB: 20 each of 10 cells": lambda h: [
            h.results_of(one, limit=20) for one in h.cells("*feature-7[0-9]")
        ],
        "diff last~1 last": lambda h: compare(h, "last~1"),
        "diff last~9 last": lambda h: compare(h, "last~9"),
        "report: grid of outcomes, newest 20 runs": lambda h: h.grid(
            [run.key for run in h.honest_runs(limit=20)][: max(1, 200_000 // cells)]
        ),
        "run: expected durations of every cell": lambda h: h.durations(ids),
        "--select failed: last result of every cell": lambda h: h.last_results(ids),
        "resume: what is recorded of a run": lambda h: h.recorded(h.honest_runs(limit=1)[0].run_id),
    }


COMMANDS = (("history",), ("history", "lora-bf16-feature-77"), ("diff", "last~1", "last"))


def measure(plan: Plan) -> Sides:
    """Ask everything of both histories; the slowest question of each round counts."""
    total = plan.pick(full=RESULTS, quick=RESULTS // 20)
    plan.facts["results"] = f"{total:,} in each history"
    slowest: Sides = {}
    plan.rounds = min(plan.rounds, 3)
    for number, (label, cells) in enumerate(SHAPES.items()):
        path = plan.folder / f"history{number}.sqlite"
        fill(path, cells, max(1, total // cells))
        for kind, works in _works(path, cells).items():
            found = interleave(plan, works)
            worst, samples = _slowest(found)
            plan.facts[f"slowest {kind}, {label}"] = worst
            slowest[f"{kind}, {label}"] = samples
    return slowest


def _slowest(found: Sides) -> tuple[str, list[Figures]]:
    """Return the name and the samples of the side that takes the most processor time."""
    taken = {name: side for name, side in found.items() if isinstance(side, list)}
    worst = max(taken, key=lambda name: statistics.median(one["cpu_s"] for one in taken[name]))
    return worst, taken[worst]


def _works(path: Path, cells: int) -> dict[str, dict[str, Work]]:
    """Return the questions that are asked in this process, and the whole commands."""

    def ask(question: Callable[[History], object]) -> Work:
        def work() -> None:
            with History(path) as history:
                question(history)

        return work

    def whole(words: tuple[str, ...]) -> Work:
        typed = [sys.executable, "-m", "reports.commands.pressure", *words]
        return lambda: command([*typed, "--history", str(path)], codes=(0, 1)).timed

    return {
        "question": {label: ask(question) for label, question in questions(cells).items()},
        "command": {" ".join(words): whole(words) for words in COMMANDS},
    }


SUBJECT = Subject(
    name="history",
    title="Nightly history: questions to a million results",
    measure=measure,
    in_quick=False,
    rows=tuple(
        Row(
            name=f"{kind}-{'many' if 'many' in shape else 'huge'}",
            what=f"slowest {kind}, {shape}, processor seconds",
            ours=f"{kind}, {shape}",
            against=None,
            goal=at_most(GOAL_S),
            margin=4.0,
        )
        for shape in SHAPES
        for kind in ("question", "command")
    ),
)
