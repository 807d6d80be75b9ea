"""Cells that run several times: every time is kept, and to pass only sometimes is a verdict."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.findings import Status
from harness.results import CellResult, Outcome

FOLDER = "attempts"
"""Folder inside that of the run, for what all times but the last left behind."""


def fold(results: Sequence[CellResult]) -> CellResult:
    """Return the one result of a cell that ran several times, in the order they were made.

    The same ending every time is that ending. Passing sometimes is flaky, whatever the rest was:
    nothing here is retried into a pass. Different failures are the last of the worst kind.
    """
    last = results[-1]
    statuses = Counter(result.status for result in results)
    total = len(results)
    passed = statuses[Status.PASSED]
    metrics = {"repeats": float(total), "passed": float(passed)}
    if 0 < passed < total:
        bad = [result for result in results if result.status is not Status.PASSED][-1]
        message = f"passed {passed} of {total} times with the same code; else {bad.outcome}: "
        outcome = Outcome.FLAKY
        return replace(
            bad,
            outcome=outcome,
            status=outcome.status,
            message=message + bad.message,
            metrics={**bad.metrics, **metrics},
            attempt=last.attempt,
            run_id=last.run_id,
        )
    worst = Status.CRASHED if statuses[Status.CRASHED] else last.status
    chosen = [result for result in results if result.status is worst][-1]
    return replace(
        chosen, message=f"{chosen.message} ({total} times)", metrics={**chosen.metrics, **metrics},
        attempt=last.attempt,
    )  # fmt: skip


def put_aside(run_dir: Path, cell_id: str, attempt: int) -> Path:
    """Move a cell's folder away so that it can run again; return where it lies now.

    Raises:
        OSError: it cannot be moved.
    """
    target = run_dir / FOLDER / f"{cell_id}-{attempt}"
    target.parent.mkdir(exist_ok=True)
    if target.exists():  # of an earlier run
        shutil.rmtree(target)
    (run_dir / cell_id).rename(target)
    return target
