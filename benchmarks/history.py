"""A history of a million results: how long it takes to be asked what people and reports ask.

python benchmarks/history.py [--results 1000000] [--repeats 5] [--output benchmarks/results]

The results are made up, written with executemany into a temporary file with the history's own
schema: once as 800 runs of 1250 cells (the product matrix, every night for two years), once as ten
runs of 100,000 cells. One in a hundred fails, each with a finding. Every question is asked several
times, each with a new connection, whose cache is empty; whole commands are processes of their own.
Where more wants to run than there are cores, wall times are stretched, and processor seconds say
what the goal is about.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from harness.history import History  # noqa: E402
from harness.history_diff import compare_runs  # noqa: E402
from harness.history_find import find_run  # noqa: E402

GOAL_S = 1.0
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


COMMANDS = (["history"], ["history", "lora-bf16-feature-77"], ["diff", "last~1", "last"])


def measure(path: Path, cells: int, repeats: int) -> dict[str, dict[str, float]]:
    """Ask everything and return the medians of wall and processor seconds."""
    figures = {}
    for label, ask in questions(cells).items():
        figures[label] = _medians([_ask(path, ask) for _ in range(repeats)])
    for words in COMMANDS:
        label = f"whole command: {' '.join(words)}"
        figures[label] = _medians([_run_command(path, words) for _ in range(repeats)])
    return figures


def _medians(times: list[tuple[float, float]]) -> dict[str, float]:
    wall, cpu = zip(*times, strict=True)
    return {"wall_s": statistics.median(wall), "cpu_s": statistics.median(cpu)}


def _ask(path: Path, ask: Callable[[History], object]) -> tuple[float, float]:
    with History(path) as history:
        wall, cpu = time.perf_counter(), time.process_time()
        ask(history)
        return time.perf_counter() - wall, time.process_time() - cpu


def _run_command(path: Path, words: list[str]) -> tuple[float, float]:
    command = [sys.executable, "-m", "reports.commands.pressure", *words, "--history", str(path)]
    wall, cpu = time.perf_counter(), _children_s()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    took = time.perf_counter() - wall, _children_s() - cpu
    if done.returncode not in (0, 1) or not done.stdout:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr}")
    return took


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def to_markdown(result: dict[str, Any]) -> str:
    """Return the tables that people read."""
    lines = [
        "# Asking a history of a million results",
        "",
        f"Made-up results; medians of {result['repeats']}, each with a new connection, the file in "
        f"the system's cache. Load average: {result['load_average']:.1f} on {result['cpus']} cores;"
        f" the goal is looked for in {result['judged_by']} seconds.",
    ]
    for shape in result["shapes"]:
        lines += [
            "",
            f"## {shape['runs']:,} runs of {shape['cells']:,} cells ({shape['label']})",
            "",
            f"{shape['results']:,} results, {shape['file_mb']:.0f} MB, written in "
            f"{shape['fill_s']:.0f} s.",
            "",
            "| question | wall | processor |",
            "| --- | --- | --- |",
            *(
                f"| {label} | {one['wall_s']:.3f} s | {one['cpu_s']:.3f} s |"
                for label, one in shape["figures"].items()
            ),
        ]
    lines += [""]
    lines += [f"- {goal}: {'met' if met else 'NOT met'}" for goal, met in result["goals"].items()]
    lines += [
        "",
        f"Python {result['python']}, SQLite {result['sqlite']}; {result['platform']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the benchmark; exit code 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    shapes = []
    loads = []
    for label, cells in SHAPES.items():
        runs = max(10, args.results // cells)
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "history.sqlite"
            begun = time.perf_counter()
            fill(path, cells, runs)
            took = time.perf_counter() - begun
            loads.append(os.getloadavg()[0])
            figures = measure(path, cells, args.repeats)
            shapes.append({
                "label": label, "cells": cells, "runs": runs, "results": cells * runs,
                "file_mb": path.stat().st_size / 1e6, "fill_s": took, "figures": figures,
            })  # fmt: skip
        print(json.dumps(shapes[-1], indent=1), flush=True)
    load, cores = max(loads), os.cpu_count() or 1
    judged_by = "wall" if load <= cores else "processor"
    key = "wall_s" if load <= cores else "cpu_s"
    goals = {
        f"every question under {GOAL_S:g} s, {shape['label']}": all(
            one[key] < GOAL_S for one in shape["figures"].values()
        )
        for shape in shapes
    }
    result = {
        "repeats": args.repeats, "load_average": load, "cpus": cores, "judged_by": judged_by,
        "shapes": shapes,
        "goals": goals, "python": platform.python_version(), "sqlite": sqlite3.sqlite_version,
        "platform": f"{platform.system()} {platform.machine()}",
    }  # fmt: skip
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "history.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (args.output / "history.md").write_text(to_markdown(result), encoding="utf-8")
    print(to_markdown(result))
    return 0 if all(goals.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
