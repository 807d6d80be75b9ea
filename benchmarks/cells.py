"""What it costs to run a cell beside its own work: as a warm fork, spawned, in a cold interpreter.

    python -m benchmarks.cells [--rounds 5] [--output benchmarks/results]

Overhead is the time from asking for a worker until its end is known, less what the cell itself says
it took to train and to reopen its artefact. The three ways take turns in one run. `cold` is what a
runner without any care does: an interpreter per cell that imports everything, needed or not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.cell_folder import drop_scratch
from harness.execution import RunOptions, start_cell
from harness.judge import judge_cell
from harness.matrix import Cell, load_cells
from harness.observations import read_observations
from harness.pools.base import Pool
from harness.pools.spawn import SpawnPool
from harness.pools.warm import WarmPool

COLD = "from harness.worker import import_engine, main; import_engine(); raise SystemExit(main())"
CELLS = {"trained": "lora-bf16", "rejected": "lora-bf16-streaming"}
"""Cells of `scenarios/full.yaml`, by what comes out."""
GOAL = 20.0
"""Times that a cold interpreter must cost what a warm fork does."""


def run_once(cell: Cell, pool: Pool, folder: Path) -> dict[str, float]:
    """Run a cell and return its wall time, own work and overhead, in seconds.

    Raises:
        SystemExit: the cell did not come to its end.
    """
    options = RunOptions(judge=judge_cell, pool=pool, environment={})
    begun = time.perf_counter()
    one = start_cell(cell, folder, options, environment={})
    while (ended := one.worker.poll()) is None:
        pool.wait(0.1)
    wall = time.perf_counter() - begun
    seen = read_observations(one.folder)
    drop_scratch(one.folder)
    wanted = "rejected" if cell.expect.outcome == "rejected" else "trained"
    if seen is None or seen.ending != wanted:
        raise SystemExit(f"{cell.name}: {ended.words}; see {one.folder}")
    work = sum(seconds for name, seconds in seen.seconds.items() if name != "import")
    return {"wall_s": wall, "work_s": work, "overhead_s": wall - work, "cpu_s": ended.cpu_s or 0.0}


def measure(cells: dict[str, Cell], rounds: int) -> Iterator[dict[str, Any]]:
    """Run every cell in every way, in turn; the first, uncounted round starts the zygotes."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pools: dict[str, Pool] = {
            "warm": stack.enter_context(closing(WarmPool())),
            "spawn": SpawnPool(),
            "cold": SpawnPool((sys.executable, "-c", COLD)),
        }
        for number in range(rounds + 1):
            for kind, cell in cells.items():
                for way, pool in pools.items():
                    if number == 0 and way != "warm":
                        continue
                    figures = run_once(cell, pool, folder)
                    shown = "warming up" if number == 0 else f"round {number}"
                    print(
                        f"{shown}  {kind:<8}  {way:<5}  {figures['overhead_s']:.3f} s", flush=True
                    )
                    yield {"round": number, "cell": kind, "way": way, **figures}


def summarise(runs: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the medians by cell and way, and how many times the warm overhead each one is."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind in CELLS:
        of_kind = [run for run in runs if run["cell"] == kind and run["round"]]
        found[kind] = {
            way: {
                name: statistics.median(run[name] for run in of_kind if run["way"] == way)
                for name in ("wall_s", "work_s", "overhead_s", "cpu_s")
            }
            for way in ("warm", "spawn", "cold")
        }
        for figures in found[kind].values():
            figures["times_warm"] = figures["overhead_s"] / found[kind]["warm"]["overhead_s"]
    return found


def write_markdown(report: dict[str, Any]) -> str:
    """Return the report for people."""
    rows = [
        f"| {kind} | {way} | {one['wall_s']:.3f} | {one['work_s']:.3f} | {one['overhead_s']:.3f} "
        f"| {one['times_warm']:.1f} |"
        for kind, ways in report["medians"].items()
        for way, one in ways.items()
    ]
    goals = [
        f"- {text}: {'met' if is_met else 'NOT met'}" for text, is_met in report["goals"].items()
    ]
    return "\n".join(
        [
            "# What a cell costs beside its own work",
            "",
            f"`make bench-cells`: {report['rounds']} rounds in which the ways take turns, medians; "
            f"one cell at a time, {report['cpus']} cores, load average before "
            f"{report['load_average']:.1f}: where that is more than the cores, all wall times are "
            "stretched. The zygote with the engine was ready after "
            f"{report['warming_up_s']:.1f} s, once per run.",
            "",
            "| cell | way | wall s | own work s | overhead s | times warm |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
            *rows,
            "",
            "`cold` imports everything in a new interpreter for every cell; `spawn` is a new "
            "interpreter that imports only what the cell needs, which for a rejection is little.",
            "",
            *goals,
            "",
            f"Python {report['python']}, "
            + ", ".join(f"{name} {text}" for name, text in report["versions"].items())
            + f"; {report['platform']}.",
            "",
        ]
    )


def main() -> int:
    """Measure, print, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    by_name = {cell.name: cell for cell in load_cells("full")}
    cells = {kind: by_name[name] for kind, name in CELLS.items()}
    runs = list(measure(cells, arguments.rounds))
    medians = summarise(runs)
    first = next(run for run in runs if run["round"] == 0 and run["cell"] == "trained")
    report = {
        "rounds": arguments.rounds,
        "cpus": os.cpu_count(),
        "load_average": load,
        "warming_up_s": first["overhead_s"],
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "trl")},
        "medians": medians,
        "goals": {
            f"warm at most 1/{GOAL:.0f} of cold, {kind} cell": ways["cold"]["times_warm"] >= GOAL
            for kind, ways in medians.items()
        },
        "runs": runs,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "cells.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    text = write_markdown(report)
    (arguments.output / "cells.md").write_text(text, "utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
