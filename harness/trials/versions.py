"""Run a smoke set in an environment with other releases, and judge its cells as usual."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from harness.cell_folder import LOG_FILE, drop_scratch, make_folder
from harness.environment import PROJECT
from harness.facts.trials import DeprecatedCall, SmokeCell, Versions
from harness.judge import judge_cell
from harness.matrix import Cell, load_cells
from harness.observations import Observations, read_observations
from harness.pools.base import Job
from harness.pools.spawn import SpawnPool
from harness.trials.order import Order
from harness.trials.releases import MOVING, Releases, make_environment, requirements_of
from mudpuppy.errors import EngineError

POLL_S = 0.05
"""Seconds between two looks at a running worker."""
_CALL = re.compile(r"(?P<site>[^\s:]+:\d+): (?:(?P<category>\w*Warning): )?(?P<text>.*)", re.DOTALL)
"""How the watcher writes a deprecated call of ours."""


class VersionOptions(BaseModel):
    """Settings of the trial, as a scenario's `options` give them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    releases: Releases
    """Which releases of the libraries."""
    smoke: str = "smoke"
    """Scenario file of the cells that are run."""


def perform(order: Order) -> Observations:
    """Make or find the environment, and run every smoke cell in it.

    Raises:
        EngineError: the environment cannot be made.
    """
    options = VersionOptions.model_validate(order.options)
    newest = datetime.now(UTC).date().isoformat() if options.releases == "newest" else ""
    python, versions = make_environment(requirements_of(options.releases), fresh_for=newest)
    print(*(f"{name} {versions[name]}" for name in MOVING), flush=True)
    cells = load_cells(options.smoke)
    measured = Versions(
        releases={name: versions[name] for name in ("torch", *MOVING)},
        cells=tuple(run_cell(cell, order.folder, python) for cell in cells),
        deprecated=tuple(dict.fromkeys(find_deprecated(cells, order.folder))),
    )
    return Observations(ending="measured", trial=asdict(measured))


def run_cell(cell: Cell, folder: Path, python: Path) -> SmokeCell:
    """Run one cell by an interpreter of another environment, and judge it.

    Raises:
        EngineError: its worker cannot be started.
    """
    place = folder / cell.cell_id
    try:
        scratch = make_folder(place, cell, None)
        worker = SpawnPool(command=(str(python), "-m", "harness.worker")).start(
            Job(
                folder=place,
                scratch=scratch,
                log=place / LOG_FILE,
                environment={**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(scratch)},
                timeout_s=cell.timeout_s,
                preload="none",
            )
        )
    except OSError as error:
        raise EngineError(f"{place}: the cell cannot be started: {error}") from None
    while (ended := worker.poll()) is None:
        time.sleep(POLL_S)
    result = judge_cell(cell, place, ended)
    drop_scratch(place)
    print(f"{cell.name}: {result.outcome}: {result.message}", flush=True)
    return SmokeCell(name=cell.name, outcome=str(result.outcome), message=result.message)


def find_deprecated(cells: Sequence[Cell], folder: Path) -> Iterator[DeprecatedCall]:
    """Yield the deprecated calls that the cells heard out of our own files."""
    for cell in cells:
        seen = read_observations(folder / cell.cell_id)
        for line in () if seen is None else seen.deprecations:
            yield parse_deprecated(line)


def parse_deprecated(line: str) -> DeprecatedCall:
    """Return a call from the line that the watcher wrote: `file:line: text`."""
    found = _CALL.match(line)
    if found is None:
        return DeprecatedCall(site="", category="", text=line)
    return DeprecatedCall(site=found["site"], category=found["category"] or "", text=found["text"])
