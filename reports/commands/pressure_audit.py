"""mudpuppy-pressure run --audit-rejections: run the rejected cells by force, beside the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.audit import audit_rejections, force_cells
from harness.execution import Judge
from harness.matrix import Cell
from harness.needs import Machine, leave_out_unmet
from harness.pools.base import Pool
from harness.runner import run_matrix
from harness.selection import Selection
from reports.matrix_progress import Progress

FOLDER = "audit"
"""Folder of the forced cells inside the folder of the run."""


def run_audit(
    cells: Sequence[Cell],
    run_dir: Path,
    *,
    machine: Machine,
    judge: Judge,
    pool: Pool,
    jobs: int,
    console: Console,
    quiet: bool,
) -> tuple[dict[str, Any], ...]:
    """Run the rejected ones of the cells without the rules that reject them; say what became of it.

    Nothing of it is a failure, and nothing of it goes into the history.
    """
    forced = force_cells(cells)
    selection = leave_out_unmet(Selection(chosen=forced, left_out=()), machine)
    if not quiet:
        console.print(f"forcing {len(selection.chosen)} rejected cells", markup=False)
    progress = Progress(console, [cell.label for cell in forced], quiet=quiet)
    with progress:
        found = run_matrix(
            selection.chosen,
            run_dir / FOLDER,
            judge=judge,
            name=FOLDER,
            jobs=jobs,
            left_out=selection.left_out,
            on_event=progress.on_event,
            pool=pool,
        )
    return audit_rejections(forced, found.cells)
