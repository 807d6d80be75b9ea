"""What it costs to run a cell beside its own work: as a warm fork, spawned, in a cold interpreter.

Overhead is the time from asking for a worker until its end is known, less what the cell itself says
it took to train and to reopen its artefact. `cold` is what a runner without any care does: an
interpreter per cell that imports everything, needed or not; `spawn` is a new interpreter that
imports only what the cell needs, which for a rejection is little.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.frame import Figures, Plan, Row, Sides, Subject, Work, at_least, interleave

if TYPE_CHECKING:
    from harness.matrix import Cell
    from harness.pools.base import Pool

COLD = "from harness.worker import import_engine, main; import_engine(); raise SystemExit(main())"
CELLS = {"trained": "lora-bf16", "rejected": "lora-bf16-streaming"}
"""Cells of `scenarios/full.yaml`, by what comes out."""
TIMES = 20.0
"""Times that a cold interpreter must cost what a warm fork does."""


def run_once(cell: Cell, pool: Pool, folder: Path) -> Figures:
    """Run a cell and return the wall time beside its own work, and its processor time, in seconds.

    Raises:
        RuntimeError: the cell did not come to its end.
    """
    from harness.cell_folder import drop_scratch
    from harness.execution import RunOptions, start_cell
    from harness.judge import judge_cell
    from harness.observations import read_observations

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
        raise RuntimeError(f"{cell.name}: {ended.words}; see {one.folder}")
    work = sum(seconds for name, seconds in seen.seconds.items() if name != "import")
    return {"wall_s": wall - work, "cpu_s": ended.cpu_s or 0.0}


def measure(plan: Plan) -> Sides:
    """Run every cell in every way, in turn; the first, uncounted round starts the zygotes."""
    from harness.matrix import load_cells
    from harness.pools.spawn import SpawnPool
    from harness.pools.warm import WarmPool

    plan.rounds = min(plan.rounds, 2)
    by_name = {cell.name: cell for cell in load_cells("full")}
    plan.facts["cells"] = ", ".join(CELLS.values())
    with ExitStack() as stack:
        pools: dict[str, Pool] = {
            "warm": stack.enter_context(closing(WarmPool())),
            "spawn": SpawnPool(),
            "cold": SpawnPool((sys.executable, "-c", COLD)),
        }
        works: dict[str, Work] = {
            f"{kind}, {way}": partial(run_once, by_name[name], pool, plan.folder)
            for kind, name in CELLS.items()
            for way, pool in pools.items()
        }
        return interleave(plan, works)


SUBJECT = Subject(
    name="cells",
    title="Pressure matrix: what a cell costs beside its own work",
    measure=measure,
    in_quick=False,
    rows=tuple(
        Row(
            name=f"{kind}-{way}",
            what=f"a {kind} cell: overhead of a warm fork (wall)",
            ours=f"{kind}, warm",
            against=f"{kind}, {way}",
            figure="wall_s",
            goal=at_least(TIMES) if way == "cold" else None,
        )
        for kind in CELLS
        for way in ("cold", "spawn")
    ),
)
