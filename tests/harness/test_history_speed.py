"""A large history stays quick: no question reads a whole table of results."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

from benchmarks.rows import history as speed
from harness.history import History

CELLS, RUNS = 100, 12
LARGE = frozenset({"results", "findings", "kept", "attempts"})
"""Tables that have a row for every result."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("history") / "history.sqlite"
    speed.fill(path, CELLS, RUNS)
    return path


def tables(sql: str) -> dict[str, str]:
    """Return the tables of a statement by the names that its plan calls them."""
    found = re.findall(r"(?:FROM|JOIN)\s+(\w+)(?:\s+(?!USING|ON|WHERE|JOIN|GROUP)(\w+))?", sql)
    return {alias or table: table for table, alias in found} | {"k": "kept", "results": "results"}


def scanned(history: History, sql: str) -> set[str]:
    """Return the large tables that a statement reads from beginning to end."""
    names = tables(sql)
    plan = [row[3] for row in history.query(f"EXPLAIN QUERY PLAN {sql}")]
    read = {names.get(m[1], m[1]) for step in plan if (m := re.match(r"SCAN (\w+)", step))}
    return read & LARGE


def find_scans(path: Path) -> dict[str, set[str]]:
    """Ask everything and return the statements that read a whole large table."""
    asked: list[str] = []
    with History(path) as history:
        history._connection.set_trace_callback(asked.append)
        for ask in speed.questions(CELLS).values():
            ask(history)
        history.results_in(1)
        history.attempts("20260101-000001-abcd", speed.cell_id(1))
        history.count_results(speed.cell_id(1))
        history._connection.set_trace_callback(None)
        assert len(set(asked)) > 15
        return {sql: found for sql in set(asked) if (found := scanned(history, sql))}


def test_no_question_reads_all_results(filled: Path) -> None:
    assert find_scans(filled) == {}


def test_without_its_index_a_question_would_read_them_all(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    speed.fill(path, CELLS, 2)
    with sqlite3.connect(path) as raw:
        raw.execute("DROP INDEX results_by_cell")

    assert {"results"} in find_scans(path).values()


def test_a_made_up_history_is_one_that_can_be_asked(filled: Path) -> None:
    with History(filled) as history:
        answers = {label: ask(history) for label, ask in speed.questions(1).items()}
        assert history.count_runs() == RUNS
        assert history.query("SELECT count(*) FROM results") == [(CELLS * RUNS,)]

    assert all(answer for label, answer in answers.items() if "CELL" not in label)
