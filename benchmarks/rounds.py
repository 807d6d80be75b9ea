"""Rounds of a benchmark: every variant once a round, compared within it."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Run:
    """One variant in one round."""

    wall_s: float
    cpu_s: float
    losses: list[float]


def compare(fast: list[Run], slow: list[Run]) -> dict[str, float]:
    """Return how many times as fast the first is: minimum and median over the rounds."""
    walls = [s.wall_s / f.wall_s for f, s in zip(fast, slow, strict=True)]
    cpus = [s.cpu_s / f.cpu_s for f, s in zip(fast, slow, strict=True)]
    return {
        "min": min(walls),
        "median": statistics.median(walls),
        "cpu_min": min(cpus),
        "cpu_median": statistics.median(cpus),
    }


def interleave(variants: dict[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """Run every variant once a round."""
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, run in variants.items():
            runs[name].append(run())
            gc.collect()
            print(f"  round {number + 1}  {name:<10} {runs[name][-1].wall_s:7.2f} s", flush=True)
    return runs
