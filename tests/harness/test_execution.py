"""The environment of a worker: its share of the cores, and never more threads than were allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import execution


@pytest.mark.parametrize(
    ("asked", "jobs", "threads"),
    [("", 2, 4), ("", 100, 1), ("1", 2, 1), ("3", 2, 3), ("64", 2, 4), ("0", 2, 4), ("2,1", 2, 4)],
)
def test_a_worker_has_its_share_of_the_cores_and_no_more_than_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str, jobs: int, threads: int
):
    monkeypatch.setattr(execution, "count_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    given = execution.worker_environment(tmp_path, jobs)

    assert {str(threads)} == {given[name] for name in execution.THREAD_VARIABLES}
