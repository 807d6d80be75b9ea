"""The recorder: one id a run, every result in the history exactly once, whoever is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from harness.cell_folder import Rerun
from harness.history import History
from harness.pools.spawn import SpawnPool
from harness.recorder import Recorder, read_run_id
from harness.results import MatrixResult, Outcome, read_result
from harness.runner import run_matrix
from tests.harness import fake_worker

POOL = SpawnPool(fake_worker.COMMAND)
NAMES = ("pass-a", "fail-b", "reject-c")


def run(folder: Path, *names: str, rerun: Rerun = "none", **more: Any) -> MatrixResult:
    with History(folder / "history.sqlite", create=True) as history:
        return run_matrix(
            fake_worker.make_cells(*names), folder / "run", judge=fake_worker.judge, pool=POOL,
            name="small", rerun=rerun, recorder=Recorder(history), **more,
        )  # fmt: skip


def history_of(folder: Path) -> History:
    return History(folder / "history.sqlite")


def executed(folder: Path) -> list[tuple[str, str]]:
    """Return run and cell of every result, in the order in which they were written."""
    with history_of(folder) as history:
        rows = history.query(
            "SELECT run_id, c.name FROM results JOIN runs USING (run_key) "
            "JOIN cells c USING (cell_key) ORDER BY result_key"
        )
    return [(row[0], row[1]) for row in rows]


def test_a_run_is_in_the_history_with_all_its_cells(tmp_path: Path) -> None:
    matrix = run(tmp_path, *NAMES)

    with history_of(tmp_path) as history:
        (row,) = history.runs()
    assert executed(tmp_path) == [(matrix.run_id, name) for name in NAMES]
    assert (row.run_id, row.verdict, row.name) == (matrix.run_id, "failed", "small")
    assert row.counts == matrix.counts
    assert row.finished is not None
    assert {cell.run_id for cell in matrix.cells} == {read_run_id(tmp_path / "run")}


def test_what_was_measured_of_the_worker_is_in_the_history(tmp_path: Path) -> None:
    matrix = run(tmp_path, "pass-a")

    with history_of(tmp_path) as history:
        (row,) = history.results_of(matrix.cells[0].cell_id)
    assert matrix.cells[0].worker is not None
    assert (row.wall_s, row.cpu_s) == (matrix.cells[0].worker.wall_s, matrix.cells[0].worker.cpu_s)
    assert row.cpu_s is not None
    assert 0 < row.cpu_s < 10


def test_running_again_with_nothing_to_do_is_no_new_run(tmp_path: Path) -> None:
    first = run(tmp_path, *NAMES)
    second = run(tmp_path, *NAMES)

    assert second.run_id == first.run_id
    assert len(executed(tmp_path)) == 3


def test_a_rerun_is_another_run_in_which_the_kept_results_stand(tmp_path: Path) -> None:
    first = run(tmp_path, *NAMES)
    second = run(tmp_path, *NAMES, rerun="failed")

    assert executed(tmp_path)[3:] == [(second.run_id, "fail-b")]
    with history_of(tmp_path) as history:
        new, old = history.runs()
        standing = {row.name: row.run_id for row in history.results_in(new.key)}
    assert (new.run_id, old.run_id) == (second.run_id, first.run_id)
    assert standing == dict.fromkeys(NAMES, first.run_id) | {"fail-b": second.run_id}


def test_cells_that_were_left_out_are_not_in_the_history(tmp_path: Path) -> None:
    (other,) = fake_worker.make_cells("other")

    run(tmp_path, "pass-a", left_out=[(other, "left out by --select pass-a")])

    assert [name for _, name in executed(tmp_path)] == ["pass-a"]


def interrupt_after(number: int) -> Any:
    """Return a judge that is interrupted like a person does it, at one of its cells."""
    calls = iter(range(100))

    def judge(cell: Any, folder: Path, ended: Any) -> Any:
        if next(calls) == number:
            raise KeyboardInterrupt
        return fake_worker.judge(cell, folder, ended)

    return judge


def run_interrupted(folder: Path, *names: str) -> None:
    with (
        History(folder / "history.sqlite", create=True) as history,
        pytest.raises(KeyboardInterrupt),
    ):
        run_matrix(
            fake_worker.make_cells(*names), folder / "run", judge=interrupt_after(1), pool=POOL,
            name="small", recorder=Recorder(history),
        )  # fmt: skip


def test_an_interrupted_run_keeps_its_id_when_it_is_gone_on_with(tmp_path: Path) -> None:
    run_interrupted(tmp_path, *NAMES)
    with history_of(tmp_path) as history:
        (unfinished,) = history.runs()

    matrix = run(tmp_path, *NAMES)

    assert (unfinished.finished, unfinished.verdict) == (None, None)
    assert executed(tmp_path) == [(unfinished.run_id, name) for name in NAMES]
    assert matrix.run_id == unfinished.run_id


def test_an_interrupted_run_asked_to_run_again_is_another(tmp_path: Path) -> None:
    run_interrupted(tmp_path, *NAMES)

    second = run(tmp_path, *NAMES, rerun="all")

    assert [name for run_id, name in executed(tmp_path) if run_id == second.run_id] == [*NAMES]
    assert len(executed(tmp_path)) == 4


def test_other_code_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_interrupted(tmp_path, *NAMES)
    monkeypatch.setattr("harness.environment.hash_sources", lambda: "another")

    run(tmp_path, *NAMES)

    with history_of(tmp_path) as history:
        assert [one.counts["passed"] for one in history.runs()] == [2, 1]


def test_a_result_that_a_killed_runner_did_not_record_is_recorded_at_the_next_start(
    tmp_path: Path,
) -> None:
    run_interrupted(tmp_path, *NAMES)
    with sqlite3.connect(tmp_path / "history.sqlite") as raw:
        raw.execute("DELETE FROM results")

    matrix = run(tmp_path, *NAMES)

    assert executed(tmp_path) == [(matrix.run_id, name) for name in NAMES]


def test_it_is_recorded_before_a_rerun_sets_it_aside(tmp_path: Path) -> None:
    first = run(tmp_path, *NAMES)
    with sqlite3.connect(tmp_path / "history.sqlite") as raw:
        raw.execute("DELETE FROM findings")
        raw.execute("DELETE FROM results")

    second = run(tmp_path, *NAMES, rerun="all")

    assert sorted(executed(tmp_path)) == sorted(
        (one, name) for one in (first.run_id, second.run_id) for name in NAMES
    )


def test_a_history_that_was_lost_learns_of_the_folder_again(tmp_path: Path) -> None:
    first = run(tmp_path, *NAMES)
    (tmp_path / "history.sqlite").unlink()

    second = run(tmp_path, *NAMES)

    assert second.run_id == first.run_id
    assert sorted(executed(tmp_path)) == sorted((first.run_id, name) for name in NAMES)


WRONG_TYPE = {"schema_version": 1, "run_id": 5, "name": "m", "code": "c", "started": "now"}
WRONG_TYPE |= {"plant": None, "model": None}


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"schema_version": 1}', '{"run_id": 5}', json.dumps(WRONG_TYPE)]
)
def test_a_run_file_that_cannot_be_read_is_made_anew(tmp_path: Path, damage: str) -> None:
    run_interrupted(tmp_path, *NAMES)
    (tmp_path / "run" / "run.json").write_text(damage, encoding="utf-8")

    second = run(tmp_path, *NAMES)

    assert json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["run_id"] == second.run_id
    assert [name for run_id, name in executed(tmp_path) if run_id == second.run_id] == [*NAMES[1:]]
    with history_of(tmp_path) as history:
        assert sum(history.runs()[0].counts.values()) == 3


def test_a_history_that_is_busy_ends_no_run_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, calls = History.record, iter([True, True, False])

    def busy(self: History, run_key: int, result: Any) -> None:
        if next(calls, False):
            raise sqlite3.OperationalError("database is locked")
        record(self, run_key, result)

    monkeypatch.setattr(History, "record", busy)

    matrix = run(tmp_path, *NAMES)

    assert executed(tmp_path) == [(matrix.run_id, name) for name in NAMES]


def test_a_locked_history_holds_a_run_up_for_moments_and_is_caught_up_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.recorder.WRITE_S", 0.1)
    other = sqlite3.connect(tmp_path / "history.sqlite", isolation_level=None)
    seconds: list[float] = []
    add = Recorder.add

    def add_while_locked(self: Recorder, result: Any) -> None:
        other.execute("BEGIN IMMEDIATE")
        begin = time.monotonic()
        add(self, result)
        seconds.append(time.monotonic() - begin)
        assert "locked" in self.problem
        other.execute("ROLLBACK")

    monkeypatch.setattr(Recorder, "add", add_while_locked)

    matrix = run(tmp_path, *NAMES)
    other.close()

    assert max(seconds) < 2.0
    assert executed(tmp_path) == [(matrix.run_id, name) for name in NAMES]


def test_a_history_whose_disk_is_full_is_caught_up_with_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with (
        monkeypatch.context() as patch,
        History(tmp_path / "history.sqlite", create=True) as history,
    ):
        patch.setattr(History, "record", full)
        recorder = Recorder(history)
        first = run_matrix(
            fake_worker.make_cells(*NAMES), tmp_path / "run", judge=fake_worker.judge, pool=POOL,
            name="small", recorder=recorder,
        )  # fmt: skip

    assert first.counts["passed"] == 2
    assert (recorder.problem, len(recorder.pending)) == ("database or disk is full", 3)
    assert executed(tmp_path) == []

    second = run(tmp_path, *NAMES)

    assert second.run_id == first.run_id
    assert sorted(executed(tmp_path)) == sorted((first.run_id, name) for name in NAMES)


DRIVER = """
    import sys
    from pathlib import Path
    import fake_worker
    import harness.runner
    from harness.history import History
    from harness.recorder import Recorder
    from harness.results import WorkerExit
    from harness.runner import run_matrix

    class Done:
        def poll(self):
            return WorkerExit(exit_code=0, wall_s=0.0, peak_rss_bytes=0)
        def kill(self):
            return self.poll()

    class Pool:
        def start(self, job):
            (job.folder / "observations.json").write_text("{}")
            return Done()

    harness.runner.describe_environment = lambda: {"sources": "here"}
    folder = Path(sys.argv[1])
    names = [f"pass-{number}" for number in range(int(sys.argv[2]))]
    with History(folder / "history.sqlite", create=True) as history:
        print("ready", flush=True)
        run_matrix(fake_worker.make_cells(*names), folder / "run", judge=fake_worker.judge,
                   pool=Pool(), name="small", recorder=Recorder(history))
"""
CELLS = 40
KILLS = int(os.environ.get("MUDPUPPY_KILLS", "6"))
"""How many times a runner is killed; a hundred take two minutes."""


def start_driver(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER), str(folder), str(CELLS)],
        env={**os.environ, "PYTHONPATH": f"{fake_worker.HERE.parent}:{os.environ['PYTHONPATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_runner_killed_again_and_again_leaves_each_result_exactly_once(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed {seed}")  # shown when the test fails
    recorded: list[tuple[str, str]] = []
    kills = 0
    for _ in range(KILLS):
        driver = start_driver(tmp_path)
        assert driver.stdout is not None
        driver.stdout.readline()
        time.sleep(chance.uniform(0, 0.2))
        driver.send_signal(signal.SIGKILL)
        driver.communicate(timeout=20)
        kills += driver.returncode == -signal.SIGKILL
        now = executed(tmp_path)
        assert now[: len(recorded)] == recorded, "what was recorded stays"
        recorded = now
    finished = start_driver(tmp_path)
    _, said = finished.communicate(timeout=60)

    assert finished.returncode == 0, said
    assert kills > 0
    seen = executed(tmp_path)
    (only,) = {run_id for run_id, _ in seen}
    assert sorted(name for _, name in seen) == sorted(f"pass-{n}" for n in range(CELLS))
    for result in (tmp_path / "run").glob("*/result.json"):
        found = read_result(result.parent)
        assert found is not None
        assert (found.run_id, found.outcome) == (only, Outcome.PASSED)
    with history_of(tmp_path) as history:
        assert history.query("PRAGMA integrity_check") == [("ok",)]
        assert history.runs()[0].verdict == "passed"
