"""The history: every run ever in one SQLite file, every result of a run in it exactly once.

The driver of a run alone writes; anybody reads, at the same time. A cell's result is one
transaction, so a killed driver leaves a history in which each recorded result stands once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.history_queries import HistoryQueries
from harness.history_rows import RunRow
from harness.history_schema import open_history, transaction
from harness.results import CellResult, WorkerExit

DEFAULT_PATH = Path("runs") / "history.sqlite"
"""Where the history lies unless somebody says otherwise: beside the folders of the runs."""


class History(HistoryQueries):
    """An open history.

    Args:
        path: the file.
        create: make it where there is none; only a driver does.

    Raises:
        HistoryError: it is missing, no history, or from a newer version.
    """

    def __init__(self, path: Path = DEFAULT_PATH, *, create: bool = False) -> None:
        super().__init__(path, open_history(path, create=create))

    def wait_at_most(self, seconds: float) -> None:
        """Set how long a statement waits for another writer before it fails."""
        self._connection.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")

    def begin_run(self, run: RunRow, environment: dict[str, Any]) -> int:
        """Note a run, or that it goes on, and return its key; its end is forgotten.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        values = asdict(run) | {"environment": json.dumps(environment, sort_keys=True)}
        del values["key"], values["counts"]
        names = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        with transaction(self._connection):
            (key,) = self._connection.execute(
                f"INSERT INTO runs ({names}) VALUES ({marks}) ON CONFLICT (run_id) DO UPDATE SET "
                "finished = excluded.finished, verdict = excluded.verdict RETURNING run_key",
                values,
            ).fetchone()
        return int(key)

    def finish_run(self, run_id: str, finished: str, verdict: str) -> None:
        """Note that a run has ended, and how.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        self._connection.execute(
            "UPDATE runs SET finished = ?, verdict = ? WHERE run_id = ?",
            (finished, verdict, run_id),
        )

    def record(self, run_key: int, result: CellResult) -> None:
        """Write the verdict on a cell in a run; one that is already there is replaced.

        Raises:
            sqlite3.Error: it cannot be written; nothing of it was.
        """
        with transaction(self._connection):
            cell_key = self._note_cell(result)
            values = _result_values(result) | {"run_key": run_key, "cell_key": cell_key}
            names = ", ".join(values)
            marks = ", ".join(f":{name}" for name in values)
            changes = ", ".join(f"{name} = excluded.{name}" for name in values)
            (key,) = self._connection.execute(
                f"INSERT INTO results ({names}) VALUES ({marks}) "
                f"ON CONFLICT (run_key, cell_key) DO UPDATE SET {changes} RETURNING result_key",
                values,
            ).fetchone()
            self._connection.execute("DELETE FROM findings WHERE result_key = ?", (key,))
            self._connection.executemany(
                "INSERT INTO findings VALUES (?, ?, ?, ?, ?, ?, ?)", _finding_rows(key, result)
            )
            # What was kept and then made anew after all is no longer kept.
            self._connection.execute(
                "DELETE FROM kept WHERE run_key = ? AND cell_key = ?", (run_key, cell_key)
            )

    def record_attempt(self, run_key: int, result: CellResult) -> None:
        """Write one execution of a cell that is repeated within a run; `attempt` tells them apart.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        wall_s, peak = (
            (result.worker.wall_s, result.worker.peak_rss_bytes)
            if result.worker
            else (
                None,
                None,
            )
        )
        with transaction(self._connection):
            cell_key = self._note_cell(result)
            self._connection.execute(
                "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (run_key, cell_key, result.attempt, result.outcome, result.status, result.message,
                 result.started, wall_s, peak),
            )  # fmt: skip

    def keep(self, run_key: int, results: Iterable[CellResult]) -> None:
        """Note results of earlier runs that stand in this one; unknown ones are passed over.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        with transaction(self._connection):
            self._connection.executemany(
                "INSERT OR IGNORE INTO kept SELECT ?, r.cell_key, r.result_key FROM results r "
                "JOIN runs u USING (run_key) JOIN cells c USING (cell_key) "
                "WHERE u.run_id = ? AND c.cell_id = ? AND u.run_key <> ?",
                [(run_key, one.run_id, one.cell_id, run_key) for one in results],
            )

    def _note_cell(self, result: CellResult) -> int:
        """Return the key of a cell; its wording is that of its newest result."""
        (key,) = self._connection.execute(
            "INSERT INTO cells (cell_id, name, title, settings, expectation) "
            "VALUES (?, ?, ?, ?, ?) ON CONFLICT (cell_id) DO UPDATE SET "
            "name = excluded.name, title = excluded.title RETURNING cell_key",
            (result.cell_id, result.name, result.title,
             json.dumps(result.config, sort_keys=True), json.dumps(result.expect, sort_keys=True)),
        ).fetchone()  # fmt: skip
        return int(key)


def describe_ending(worker: WorkerExit | None) -> str | None:
    """Return how a worker ended in a word or two that can be compared, or None without one."""
    if worker is None:
        return None
    if worker.timed_out:
        return "time limit"
    return worker.signal or f"exit code {worker.exit_code}"


def _result_values(result: CellResult) -> dict[str, Any]:
    """Return a result as the columns of its row, keys of run and cell excepted."""
    worker = result.worker
    on_device = result.metrics.get("peak_device_bytes")
    return {
        "attempt": result.attempt,
        "outcome": result.outcome,
        "status": result.status,
        "message": result.message,
        "ending": describe_ending(worker),
        "started": result.started,
        "finished": result.finished,
        "wall_s": worker.wall_s if worker else None,
        "cpu_s": worker.cpu_s if worker else None,
        "peak_rss_bytes": worker.peak_rss_bytes if worker else None,
        "device_bytes": None if on_device is None else int(on_device),
        "metrics": json.dumps(result.to_json()["metrics"], sort_keys=True),
    }


def _finding_rows(result_key: int, result: CellResult) -> Iterable[tuple[Any, ...]]:
    for place, one in enumerate(result.findings):
        yield (
            *(result_key, place, str(one.get("code", "")), str(one.get("name", ""))),
            *(str(one.get("subject", ".")), one.get("severity"), str(one.get("message", ""))),
        )
