"""A matrix of a hundred thousand cells: the time and memory that it takes to list and select them.

python benchmarks/matrix.py [--runs 3] [--output benchmarks/results]

The axes and includes of `scenarios/full.yaml` times 81 seeds, 101,088 cells. Every figure is of a
fresh process that runs the real command; the peak of its memory is what the kernel counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SEEDS = 81
COMMANDS = {
    "list all": ["list", "{file}"],
    "list, selected by setting and name": [
        *("list", "{file}", "--select", "method=qlora", "--select", "full-*", "--ignore", "seed=9"),
    ],
    "list, selected by feature": ["list", "{file}", "--select", "feature=packing"],
    "run --sample 30 --dry-run": ["run", "{file}", "--sample", "30", "--seed", "1", "--dry-run"],
    "run --shard 2/8 --dry-run": ["run", "{file}", "--shard", "2/8", "--dry-run"],
}
GOALS = {"wall_s": 5.0, "peak_mb": 500.0}
CHILD = """\
import resource, sys
from reports.commands.pressure import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
raise SystemExit(code)
"""


def write_matrix(folder: Path) -> Path:
    """Write the large matrix beside nothing else; its datasets are not opened."""
    text = (ROOT / "scenarios" / "full.yaml").read_text(encoding="utf-8")
    seeds = ", ".join(str(seed) for seed in range(SEEDS))
    text = text.replace("  feature: all\n", f"  feature: all\n  seed: [{seeds}]\n")
    text = text.replace("    seed: 8\n", "")  # the seed is an axis now, and would be matched
    path = folder / "large.yaml"
    path.write_text(text.replace("name: full", "name: large"), encoding="utf-8")
    return path


def measure(words: list[str], file: Path) -> dict[str, float]:
    """Run one command in a fresh process and return its figures.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-c", CHILD, *(word.format(file=file) for word in words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = int(done.stderr.split()[-1]) / 1024
    return {"wall_s": wall, "cpu_s": cpu, "peak_mb": peak, "lines": done.stdout.count("\n")}


def main() -> int:
    """Measure every command and write a result file; exit code 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        file = write_matrix(Path(name))
        for title, words in COMMANDS.items():
            runs = [measure(words, file) for _ in range(arguments.runs)]
            figures[title] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    met = all(one[key] < goal for one in figures.values() for key, goal in GOALS.items())
    result = {
        "cells": 13 * 4 * 24 * SEEDS,
        "runs": arguments.runs,
        "commands": figures,
        "goals": GOALS,
        "met": met,
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "pydantic": version("pydantic"),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2) + "\n"
    (arguments.output / "matrix.json").write_text(text, encoding="utf-8")
    (arguments.output / "matrix.md").write_text(write_page(result), encoding="utf-8")
    print(write_page(result))
    return 0 if met else 1


def write_page(result: dict[str, Any]) -> str:
    """Return the result as a page for people."""
    goals = result["goals"]
    lines = [
        "# A matrix of a hundred thousand cells",
        "",
        f"`benchmarks/matrix.py`: {result['cells']:,} cells, median of {result['runs']} fresh "
        f"processes each, Python {result['python']}, pydantic {result['pydantic']}, "
        f"{result['cores']} cores, load {result['load']:.1f}. To reach: {goals['wall_s']:g} s and "
        f"{goals['peak_mb']:g} MB, {'met' if result['met'] else 'missed'}.",
        "",
        "| command | wall s | CPU s | peak MB | lines |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {title} | {one['wall_s']:.2f} | {one['cpu_s']:.2f} | {one['peak_mb']:.0f} | "
        f"{one['lines']:,} |"
        for title, one in result["commands"].items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
