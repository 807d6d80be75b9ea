"""Run a few cells both ways, forked from a warm process and in clean interpreters, and compare.

What a fork inherits may change what a cell does. That it does not is believed only while a sample
says so: outcome, findings and every loss must be the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from harness.execution import RunOptions, preload_of
from harness.matrix import Cell
from harness.observations import read_observations
from harness.pools.base import Pool
from harness.results import CellResult
from harness.runner import run_cells

FOLDER = "cold-sample"
"""Folder inside that of the run for what both ways left behind."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One cell, run both ways."""

    name: str
    """Name of the cell."""
    warm: CellResult
    """Its result as a fork."""
    cold: CellResult
    """Its result in an interpreter of its own."""
    difference: str
    """What is not the same; empty when all is."""


def compare_isolations(
    cells: Sequence[Cell],
    run_dir: Path,
    options: RunOptions,
    make_pool: Callable[[str], Pool],
    *,
    number: int,
    seed: str,
) -> tuple[Comparison, ...]:
    """Run a sample of the cells both ways.

    Args:
        cells: cells to choose from; those that are never forked are left out.
        run_dir: folder of the run.
        options: how cells are run; the pool is replaced.
        make_pool: returns a pool by its name, `warm` or `spawn`.
        number: how many cells.
        seed: chooses them.

    Raises:
        OutputError: a folder cannot be made.
    """
    may = [cell for cell in cells if preload_of(cell) != "none"]
    sample = random.Random(seed).sample(may, min(number, len(may)))
    results: dict[str, dict[str, CellResult]] = {}
    for way in ("warm", "spawn"):
        with closing(make_pool(way)) as pool:
            found = run_cells(sample, run_dir / FOLDER / way, replace(options, pool=pool))
            results[way] = {result.cell_id: result for result in found}
    return tuple(
        _compare(results["warm"][one.cell_id], results["spawn"][one.cell_id], run_dir / FOLDER)
        for one in sample
    )


def _compare(warm: CellResult, cold: CellResult, folder: Path) -> Comparison:
    """Say what differs between two results of a cell."""
    pairs = [
        ("outcome", warm.outcome.value, cold.outcome.value),
        ("findings", _codes(warm), _codes(cold)),
        ("losses", *(_losses(folder / way / warm.cell_id) for way in ("warm", "spawn"))),
    ]
    said = [f"{what}: warm {one}, cold {other}" for what, one, other in pairs if one != other]
    return Comparison(name=warm.name, warm=warm, cold=cold, difference="; ".join(said))


def _codes(result: CellResult) -> list[str]:
    return sorted(str(finding["code"]) for finding in result.findings)


def _losses(folder: Path) -> list[float]:
    try:
        seen = read_observations(folder)
    except ValueError:  # torn, which is an outcome of its own
        seen = None
    return list(seen.losses) if seen else []
