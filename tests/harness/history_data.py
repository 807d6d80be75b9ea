"""Results and runs for the tests of the history, made in a line each."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from harness.history import History
from harness.history_rows import RunRow
from harness.results import CellResult, Outcome, WorkerExit

FINDING = {"code": "MPD203", "name": "adapter-never-trained", "subject": ".",
           "severity": "critical", "message": "12 of 12 tensors never moved"}  # fmt: skip


def make_result(
    name: str,
    outcome: Outcome = Outcome.PASSED,
    *,
    wall_s: float = 1.0,
    mib: int = 100,
    **more: Any,
) -> CellResult:
    """Return a cell's result; one that failed has a finding."""
    worker = WorkerExit(exit_code=0, wall_s=wall_s, peak_rss_bytes=mib * 2**20, cpu_s=wall_s / 2)
    if outcome is Outcome.FAILED:
        more.setdefault("findings", (FINDING,))
    values: dict[str, Any] = {
        "cell_id": sha256(name.encode()).hexdigest()[:12], "name": name, "title": name.title(),
        "number": 1, "config": {"method": "lora"}, "expect": {"outcome": "trained"},
        "message": "as expected" if outcome is Outcome.PASSED else f"it {outcome}",
        "worker": worker, "started": "2026-02-01T10:00:00+00:00",
        "finished": "2026-02-01T10:00:01+00:00", "metrics": {"loss_after": 1.0},
    }  # fmt: skip
    return CellResult(outcome=outcome, status=outcome.status, **(values | more))


def make_run(number: int, **more: Any) -> RunRow:
    """Return the description of a run; each run has a code of its own unless one is given."""
    values: dict[str, Any] = {
        "key": 0, "run_id": f"20260201-{number:06}-abcd", "name": "seed", "kind": "matrix",
        "matrix": "scenarios/seed.yaml", "folder": f"runs/seed-{number}",
        "started": f"2026-02-01T10:{number % 60:02}:00+00:00", "finished": None, "verdict": None,
        "revision": f"{number:012x}", "code": f"{number:012x}", "host": "here", "device": None,
        "plant": None, "model": None,
    }  # fmt: skip
    return RunRow(**(values | more))


def add_run(history: History, number: int, *results: CellResult, **more: Any) -> int:
    """Write a finished run and return its key."""
    row = make_run(number, **more)
    key = history.begin_run(row, {"git": row.revision})
    for result in results:
        history.record(key, result)
    history.finish_run(row.run_id, row.started, "passed")
    return key


def new_history(folder: Path) -> History:
    """Return an empty history in a folder."""
    return History(folder / "history.sqlite", create=True)
