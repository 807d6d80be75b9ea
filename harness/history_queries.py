"""Ask the history: runs, results of a cell over time, what stood last, durations, a grid."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.findings import Status
from harness.history_rows import LastResult, ResultRow, RunRow
from harness.history_schema import HistoryError, explained, read_word
from harness.results import Outcome
from mudpuppy.errors import near_names

REMEMBERED = 5
"""Newest results of a cell whose mean is its expected duration."""

_RUN = """SELECT run_key, run_id, name, kind, matrix, folder, started, finished, verdict, revision,
    code, host, device, plant, model FROM runs"""
_RESULT = """SELECT u.run_id, u.revision, u.plant, c.cell_id, c.name, c.title, r.attempt, r.outcome,
    r.status, r.message, r.ending, r.started, r.wall_s, r.cpu_s, r.peak_rss_bytes, r.device_bytes,
    (SELECT group_concat(code, ' ')
        FROM (SELECT code FROM findings f WHERE f.result_key = r.result_key ORDER BY place))"""
_HONEST = "u.plant IS NULL AND u.kind = 'matrix'"
"""Runs that count when nobody names one: nothing planted, no search for a smallest failure."""


class HistoryQueries:
    """Everything that is asked of an open history.

    Args:
        path: the file, for messages.
        connection: an open connection to it.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go."""
        self._connection.close()

    def query(self, sql: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query.

        Raises:
            MudpuppyError: the file is damaged or held by somebody.
        """
        with explained(self.path), closing(self._connection.execute(sql, values)) as cursor:
            return cursor.fetchall()

    def runs(self, *, name: str | None = None, limit: int | None = None) -> tuple[RunRow, ...]:
        """Return runs with their counts, the newest first, planted ones and searches included."""
        where = "" if name is None else "WHERE name = :name"
        rows = self.query(
            f"{_RUN} {where} ORDER BY run_key DESC LIMIT :limit",
            {"name": name, "limit": -1 if limit is None else limit},
        )
        counts = self._counts([row[0] for row in rows])
        return tuple(_run_row(row, counts.get(row[0], {})) for row in rows)

    def run(self, run_id: str) -> RunRow | None:
        """Return the run with an id, with its counts, or None."""
        rows = self.query(f"{_RUN} WHERE run_id = ?", (run_id,))
        return _run_row(rows[0], self._counts([rows[0][0]]).get(rows[0][0], {})) if rows else None

    def runs_like(self, prefix: str) -> tuple[str, ...]:
        """Return the ids that begin with a text, oldest first."""
        rows = self.query(
            "SELECT run_id FROM runs WHERE substr(run_id, 1, length(:p)) = :p ORDER BY run_key",
            {"p": prefix},
        )
        return tuple(row[0] for row in rows)

    def honest_runs(
        self, *, name: str | None = None, until: int | None = None, limit: int = -1
    ) -> tuple[RunRow, ...]:
        """Return runs of matrices with nothing planted, the newest first, without counts.

        Args:
            name: only those of this matrix.
            until: only those whose key is not larger.
            limit: at most so many; all when negative.
        """
        rows = self.query(
            f"{_RUN} u WHERE {_HONEST} AND (:name IS NULL OR name = :name) "
            "AND (:until IS NULL OR run_key <= :until) ORDER BY run_key DESC LIMIT :limit",
            {"name": name, "until": until, "limit": limit},
        )
        return tuple(_run_row(row, {}) for row in rows)

    def recorded(self, run_id: str) -> frozenset[str]:
        """Return the ids of the cells that stand in a run, those kept included."""
        rows = self.query(
            "SELECT c.cell_id FROM runs u JOIN standing s USING (run_key) "
            "JOIN cells c USING (cell_key) WHERE u.run_id = ?",
            (run_id,),
        )
        return frozenset(row[0] for row in rows)

    def cells(self, word: str) -> tuple[str, ...]:
        """Return the ids of the cells that a word names: a name, an id, or a glob on either.

        Raises:
            HistoryError: it names none; the near names are in the message.
        """
        is_glob = any(sign in word for sign in "*?[")
        test = "GLOB" if is_glob else "="
        rows = self.query(
            f"SELECT cell_id FROM cells WHERE name {test} :word OR cell_id {test} :word "
            "ORDER BY name, cell_key",
            {"word": word},
        )
        if not rows:
            names = [row[0] for row in self.query("SELECT DISTINCT name FROM cells")]
            raise HistoryError(
                f"no cell in {self.path} is called '{word}'{near_names(word, names)}",
                hint="a word is a name, an id, or a glob on one of them",
            )
        return tuple(row[0] for row in rows)

    def count_runs(self, *, name: str | None = None) -> int:
        """Return how many runs there are."""
        rows = self.query(
            "SELECT count(*) FROM runs WHERE :name IS NULL OR name = :name", {"name": name}
        )
        return int(rows[0][0])

    def matrix_names(self) -> tuple[str, ...]:
        """Return the names of all matrices that were ever run."""
        return tuple(row[0] for row in self.query("SELECT DISTINCT name FROM runs ORDER BY name"))

    def count_results(self, cell_id: str, *, name: str | None = None) -> int:
        """Return how many results a cell has."""
        rows = self.query(
            "SELECT count(*) FROM cells JOIN results USING (cell_key) JOIN runs u USING (run_key) "
            "WHERE cell_id = :cell AND (:name IS NULL OR u.name = :name)",
            {"cell": cell_id, "name": name},
        )
        return int(rows[0][0])

    def results_of(
        self, cell_id: str, *, name: str | None = None, limit: int | None = None
    ) -> tuple[ResultRow, ...]:
        """Return all results of a cell, or those in one matrix, the newest first."""
        rows = self.query(
            f"{_RESULT} FROM cells c JOIN results r USING (cell_key) JOIN runs u USING (run_key) "
            "WHERE c.cell_id = :cell AND (:name IS NULL OR u.name = :name) "
            "ORDER BY r.run_key DESC LIMIT :limit",
            {"cell": cell_id, "name": name, "limit": -1 if limit is None else limit},
        )
        return tuple(_result_row(row) for row in rows)

    def known_result(self, cell_id: str, code: str, plant: str | None) -> ResultRow | None:
        """Return the newest result that this very code gave of a cell, or None."""
        rows = self.query(
            f"{_RESULT} FROM cells c JOIN results r USING (cell_key) JOIN runs u USING (run_key) "
            "WHERE c.cell_id = ? AND u.code = ? AND u.plant IS ? AND r.status <> 'skipped' "
            "ORDER BY r.run_key DESC LIMIT 1",
            (cell_id, code, plant),
        )
        return _result_row(rows[0]) if rows else None

    def results_in(
        self, run_key: int, cell_ids: Sequence[str] | None = None
    ) -> tuple[ResultRow, ...]:
        """Return what stands in a run: all of it, or that of some cells; in no order."""
        only = "" if cell_ids is None else "AND c.cell_id IN (SELECT value FROM json_each(:ids))"
        rows = self.query(
            f"{_RESULT} FROM standing s JOIN results r USING (result_key) "
            "JOIN cells c ON c.cell_key = s.cell_key JOIN runs u ON u.run_key = r.run_key "
            f"WHERE s.run_key = :run {only}",
            {"run": run_key, "ids": json.dumps(cell_ids)},
        )
        return tuple(_result_row(row) for row in rows)

    def attempts(self, run_id: str, cell_id: str) -> tuple[Outcome, ...]:
        """Return how each execution of a repeated cell ended, in order."""
        rows = self.query(
            "SELECT a.outcome FROM attempts a JOIN runs USING (run_key) "
            "JOIN cells c USING (cell_key) WHERE run_id = ? AND cell_id = ? ORDER BY a.attempt",
            (run_id, cell_id),
        )
        return tuple(read_word(Outcome, row[0]) for row in rows)

    def last_results(self, cell_ids: Iterable[str]) -> dict[str, LastResult]:
        """Return each cell's last result, by id: of honest runs, and not one that was skipped."""
        # All columns are in an index, so that not one of a million rows is looked at.
        rows = self.query(
            "SELECT c.cell_id, r.status, r.wall_s FROM json_each(?) "
            "JOIN cells c ON c.cell_id = value "
            "JOIN results r ON r.cell_key = c.cell_key AND r.run_key = ("
            "  SELECT i.run_key FROM results i"
            "  WHERE i.cell_key = c.cell_key AND i.status <> 'skipped' AND i.run_key NOT IN"
            f"    (SELECT run_key FROM runs u WHERE NOT ({_HONEST}))"
            "  ORDER BY i.run_key DESC LIMIT 1)",
            (json.dumps(list(cell_ids)),),
        )
        statuses = {status.value: status for status in Status}
        return {row[0]: LastResult(status=statuses[row[1]], wall_s=row[2]) for row in rows}

    def durations(self, cell_ids: Iterable[str]) -> dict[str, float]:
        """Return how long each known cell takes: the mean of its newest durations, in seconds.

        Cells that never ran are not in the answer. A runner starts the longest first, and sums
        them up to say when it will be done; a sum of means is what is to be expected.
        """
        rows = self.query(
            "SELECT c.cell_id, (SELECT avg(wall_s) FROM"
            "  (SELECT i.wall_s FROM results i WHERE i.cell_key = c.cell_key"
            "   AND i.wall_s IS NOT NULL ORDER BY i.run_key DESC LIMIT ?)) "
            "FROM json_each(?) JOIN cells c ON c.cell_id = value",
            (REMEMBERED, json.dumps(list(cell_ids))),
        )
        return {cell_id: mean for cell_id, mean in rows if mean is not None}

    def grid(self, run_keys: Sequence[int]) -> dict[str, dict[int, Outcome]]:
        """Return the outcomes of all cells over some runs: cell id -> run key -> outcome."""
        rows = self.query(
            "SELECT c.cell_id, s.run_key, s.outcome FROM standing s JOIN cells c USING (cell_key) "
            "WHERE s.run_key IN (SELECT value FROM json_each(?))",
            (json.dumps(list(run_keys)),),
        )
        outcomes = {outcome.value: outcome for outcome in Outcome}
        table: defaultdict[str, dict[int, Outcome]] = defaultdict(dict)
        for cell_id, run_key, outcome in rows:
            table[cell_id][run_key] = outcomes[outcome]
        return dict(table)

    def _counts(self, run_keys: Sequence[int]) -> dict[int, dict[str, int]]:
        """Return the cells by ending of each run, those kept included."""
        keys = json.dumps(list(run_keys))
        rows = self.query(
            "SELECT run_key, status, count(*) FROM results "
            "WHERE run_key IN (SELECT value FROM json_each(:keys)) GROUP BY run_key, status "
            "UNION ALL "
            "SELECT k.run_key, r.status, count(*) FROM kept k JOIN results r USING (result_key) "
            "WHERE k.run_key IN (SELECT value FROM json_each(:keys)) GROUP BY k.run_key, r.status",
            {"keys": keys},
        )
        counts: defaultdict[int, dict[str, int]] = defaultdict(lambda: dict.fromkeys(Status, 0))
        for run_key, status, number in rows:
            counts[run_key][read_word(Status, status)] += number
        return dict(counts)


def _run_row(row: tuple[Any, ...], counts: dict[str, int]) -> RunRow:
    names = "key run_id name kind matrix folder started finished verdict revision code host device"
    names += " plant model"
    return RunRow(**dict(zip(names.split(), row, strict=True)), counts=counts)


def _result_row(row: tuple[Any, ...]) -> ResultRow:
    names = "run_id revision plant cell_id name title attempt outcome status message ending started"
    names += " wall_s cpu_s peak_rss_bytes device_bytes codes"
    values = dict(zip(names.split(), row, strict=True))
    values["codes"] = tuple((values["codes"] or "").split())
    values["outcome"] = read_word(Outcome, values["outcome"])
    values["status"] = read_word(Status, values["status"])
    return ResultRow(**values)
