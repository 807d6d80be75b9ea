"""The runner: whatever a cell does, it has one result, and nothing of it stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from harness.cell_folder import lock_folder
from harness.pools.spawn import SpawnPool
from harness.results import (
    CellResult,
    Event,
    Finished,
    MatrixResult,
    Outcome,
    Started,
    Status,
    read_result,
)
from harness.runner import run_matrix
from mudpuppy.errors import OutputError
from tests.harness import fake_worker


def run(run_dir: Path, *names: str, timeout_s: float = 30.0, **options: Any) -> MatrixResult:
    cells = fake_worker.make_cells(*names, timeout_s=timeout_s)
    options.setdefault("judge", fake_worker.judge)
    return run_matrix(cells, run_dir, pool=SpawnPool(fake_worker.COMMAND), **options)


def run_one(run_dir: Path, name: str, **options: Any) -> CellResult:
    (result,) = run(run_dir, name, **options).cells
    return result


def starts(run_dir: Path) -> list[str]:
    path = run_dir / "starts.txt"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def observed(run_dir: Path, result: CellResult) -> dict[str, Any]:
    path = run_dir / result.cell_id / "observations.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


def test_a_passing_cell_leaves_its_instructions_its_output_and_its_result(tmp_path: Path) -> None:
    matrix = run(tmp_path, "pass")

    folder = tmp_path / matrix.cells[0].cell_id
    assert (matrix.verdict, matrix.exit_code) == (Status.PASSED, 0)
    assert matrix.counts == {"passed": 1, "failed": 0, "skipped": 0, "crashed": 0}
    assert read_result(folder) == matrix.cells[0]
    assert (folder / "output.log").read_text(encoding="utf-8") == "cell pass says hello\n"
    assert sorted(one.name for one in folder.iterdir()) == [
        "config.json",
        "observations.json",
        "output.log",
        "result.json",
    ]


def test_a_worker_has_its_own_session_place_and_share_of_the_cores(tmp_path: Path) -> None:
    result = run_one(tmp_path, "pass", jobs=1000, plant="eos-masked")

    seen = observed(tmp_path, result)

    assert seen["is_session_leader"]
    assert seen["environment"]["OMP_NUM_THREADS"] == "1"
    assert seen["cwd"] == seen["environment"]["TMPDIR"]
    assert not Path(seen["cwd"]).exists()
    assert (seen["plant"], result.plant) == ("eos-masked", "eos-masked")


def test_the_worker_ending_is_recorded(tmp_path: Path) -> None:
    ended = run_one(tmp_path, "memory").worker

    assert ended is not None
    assert (ended.exit_code, ended.signal, ended.timed_out) == (0, None, False)
    assert ended.peak_rss_bytes > 300 * 2**20
    assert 0 < ended.wall_s < 20


def test_a_failing_cell_fails_the_matrix_and_keeps_the_end_of_its_output(tmp_path: Path) -> None:
    matrix = run(tmp_path, "pass", "fail")

    assert (matrix.verdict, matrix.exit_code) == (Status.FAILED, 1)
    assert matrix.cells[1].log_tail == "cell fail says hello"
    assert matrix.cells[0].log_tail == ""


def test_a_segfault_is_an_outcome_with_its_name_and_not_the_end(tmp_path: Path) -> None:
    matrix = run(tmp_path, "segfault", "pass")

    ended = matrix.cells[0].worker
    assert ended is not None
    assert (ended.exit_code, ended.signal) == (None, "SIGSEGV")
    assert [cell.outcome for cell in matrix.cells] == [Outcome.CRASHED, Outcome.PASSED]
    assert matrix.exit_code == 3


def test_a_traceback_is_in_the_log_tail(tmp_path: Path) -> None:
    result = run_one(tmp_path, "raise")

    assert result.status is Status.CRASHED
    assert "RuntimeError: the worker broke" in result.log_tail


@pytest.mark.parametrize("name", ["hang", "escape"])
def test_a_hang_ends_at_the_limit_and_no_grandchild_survives(tmp_path: Path, name: str) -> None:
    result = run_one(tmp_path, name, timeout_s=0.7)

    pid = int((tmp_path / result.cell_id / "grandchild.pid").read_text(encoding="utf-8"))
    assert result.worker is not None
    assert result.outcome is Outcome.TIMEOUT
    assert result.worker.signal == "SIGTERM"
    wait_until(lambda: not is_alive(pid))


def test_a_worker_that_ignores_being_asked_is_made_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.process.GRACE_S", 0.3)

    result = run_one(tmp_path, "stubborn", timeout_s=0.5)

    assert result.worker is not None
    assert (result.worker.signal, result.worker.timed_out) == ("SIGKILL", True)


def test_what_a_finished_worker_leaves_running_is_killed_and_counted(tmp_path: Path) -> None:
    result = run_one(tmp_path, "leave")

    pid = int((tmp_path / result.cell_id / "grandchild.pid").read_text(encoding="utf-8"))
    assert result.status is Status.PASSED
    wait_until(lambda: not is_alive(pid))


def test_huge_output_is_kept_whole_and_its_end_is_shown(tmp_path: Path) -> None:
    result = run_one(tmp_path, "loud", judge=lambda cell, folder, ended: fake_worker.judge(
        fake_worker.make_cells("fail-loud")[0], folder, ended
    ))  # fmt: skip

    log = tmp_path / fake_worker.make_cells("loud")[0].cell_id / "output.log"
    assert log.stat().st_size > 15_000_000
    assert result.log_tail.endswith("the last line")
    assert len(result.log_tail) < 20_000


def test_a_judge_that_breaks_is_one_crashed_cell(tmp_path: Path) -> None:
    matrix = run(tmp_path, "unjudged", "pass")

    assert matrix.cells[0].message == "could not be judged: ZeroDivisionError: the judge broke"
    assert [cell.status for cell in matrix.cells] == [Status.CRASHED, Status.PASSED]


def test_cells_run_side_by_side_and_are_reported_in_matrix_order(tmp_path: Path) -> None:
    events: list[Event] = []
    names = ("slow-a", "pass-b", "pass-c")

    matrix = run(tmp_path, *names, jobs=2, on_event=events.append)

    finished = [event.result.name for event in events if isinstance(event, Finished)]
    assert [cell.name for cell in matrix.cells] == list(names)
    assert finished == ["pass-b", "pass-c", "slow-a"]
    assert [type(event) for event in events[:2]] == [Started, Started]


def test_cells_left_out_are_not_run_and_say_why(tmp_path: Path) -> None:
    (cell, other) = fake_worker.make_cells("pass", "other")

    matrix = run_matrix(
        [cell], tmp_path, judge=fake_worker.judge, pool=SpawnPool(fake_worker.COMMAND),
        left_out=[(other, "left out by --select pass")],
    )  # fmt: skip

    assert matrix.cells[1].outcome is Outcome.NOT_RUN
    assert matrix.cells[1].message == "left out by --select pass"
    assert (matrix.verdict, matrix.exit_code) == (Status.PASSED, 0)
    assert not (tmp_path / other.cell_id).exists()


def test_when_nothing_ran_the_matrix_did_not_pass(tmp_path: Path) -> None:
    matrix = run(tmp_path, "skip")

    assert (matrix.verdict, matrix.exit_code) == (Status.SKIPPED, 3)


def test_a_second_run_keeps_every_finished_cell(tmp_path: Path) -> None:
    first = run(tmp_path, "pass", "fail", "segfault")
    second = run(tmp_path, "pass", "fail", "segfault")

    assert second.cells == first.cells
    assert second.kept == ("pass", "fail", "segfault")
    assert starts(tmp_path) == ["pass", "fail", "segfault"]


@pytest.mark.parametrize(
    ("rerun", "again"), [("failed", ["fail", "segfault"]), ("all", ["pass", "fail", "segfault"])]
)
def test_rerun_runs_what_it_says_and_counts_attempts(
    tmp_path: Path, rerun: Any, again: list[str]
) -> None:
    names = ["pass", "fail", "segfault"]
    run(tmp_path, *names)

    second = run(tmp_path, *names, rerun=rerun)

    assert starts(tmp_path) == names + again
    assert {cell.name: cell.attempt for cell in second.cells} == {
        name: 2 if name in again else 1 for name in names
    }


def test_a_result_of_another_plant_is_not_kept(tmp_path: Path) -> None:
    run(tmp_path, "pass")
    run(tmp_path, "pass", plant="merge-does-nothing")

    assert starts(tmp_path) == ["pass", "pass"]


@pytest.mark.parametrize("damage", ["", "{", '{"schema_version": 99}', "[]"])
def test_a_result_that_cannot_be_read_is_made_anew(tmp_path: Path, damage: str) -> None:
    result = run_one(tmp_path, "pass")
    (tmp_path / result.cell_id / "result.json").write_text(damage, encoding="utf-8")

    assert run_one(tmp_path, "pass").status is Status.PASSED
    assert starts(tmp_path) == ["pass", "pass"]


def test_a_half_done_folder_is_wiped_and_made_anew(tmp_path: Path) -> None:
    (cell,) = fake_worker.make_cells("pass")
    stale = tmp_path / cell.cell_id / "checkpoint" / "half.safetensors"
    stale.parent.mkdir(parents=True)
    stale.touch()

    assert run_one(tmp_path, "pass").status is Status.PASSED
    assert not stale.exists()


def test_two_runners_cannot_share_a_folder(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path),
        pytest.raises(OutputError, match=f"in use by process {os.getpid()}"),
    ):
        run(tmp_path, "pass")

    assert starts(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")

    with pytest.raises(OutputError, match="cannot be written"):
        run(tmp_path / "file" / "run", "pass")


DRIVER = """
    import sys
    from pathlib import Path
    import fake_worker
    from harness.pools.spawn import SpawnPool
    from harness.runner import run_matrix
    cells = fake_worker.make_cells(*sys.argv[2:])
    run_matrix(cells, Path(sys.argv[1]), judge=fake_worker.judge, jobs=2,
               pool=SpawnPool(fake_worker.COMMAND))
"""


def start_driver(run_dir: Path, *names: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER), str(run_dir), *names],
        env={**os.environ, "PYTHONPATH": fake_worker.PATH},
        stderr=subprocess.PIPE,
    )


def test_a_result_that_other_code_made_is_not_kept(tmp_path, monkeypatch) -> None:
    cells = fake_worker.make_cells("pass-one")
    first = run_matrix(
        cells, tmp_path, judge=fake_worker.judge, pool=SpawnPool(fake_worker.COMMAND)
    )
    monkeypatch.setattr("harness.environment.hash_sources", lambda: "another")

    second = run_matrix(
        cells, tmp_path, judge=fake_worker.judge, pool=SpawnPool(fake_worker.COMMAND)
    )

    assert (first.kept, second.kept) == ((), ())
    assert second.cells[0].attempt == 2


@pytest.mark.parametrize("killer", [signal.SIGKILL, signal.SIGINT])
def test_a_runner_killed_in_the_middle_is_resumed_with_every_cell_exactly_once(
    tmp_path: Path, killer: signal.Signals
) -> None:
    names = ("pass-a", "pass-b", "escape", "pass-c")
    driver = start_driver(tmp_path, *names)
    cells = {cell.name: tmp_path / cell.cell_id for cell in fake_worker.make_cells(*names)}
    grandchild = cells["escape"] / "grandchild.pid"
    done = cells["pass-c"] / "result.json"
    wait_until(lambda: grandchild.exists() and grandchild.read_text("utf-8") and done.exists())
    survivor = int(grandchild.read_text(encoding="utf-8"))

    driver.send_signal(killer)
    driver.communicate(timeout=10)
    again = run(tmp_path, *names, timeout_s=0.5)

    assert sorted(starts(tmp_path)) == sorted([*names, "escape"])
    assert [cell.outcome for cell in again.cells] == [
        Outcome.PASSED, Outcome.PASSED, Outcome.TIMEOUT, Outcome.PASSED,
    ]  # fmt: skip
    assert again.kept == ("pass-a", "pass-b", "pass-c")
    wait_until(lambda: not is_alive(survivor))


def test_a_killed_runner_takes_its_workers_with_it(tmp_path: Path) -> None:
    driver = start_driver(tmp_path, "hang")
    (cell,) = fake_worker.make_cells("hang")
    log = tmp_path / cell.cell_id / "output.log"
    wait_until(lambda: log.exists() and log.read_text("utf-8"))
    children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text("utf-8").split()

    driver.kill()
    driver.communicate(timeout=10)

    assert len(children) == 1
    wait_until(lambda: not is_alive(int(children[0])))
    run(tmp_path, "hang", timeout_s=0.2)  # removes what the killed runner left behind
    assert not list(Path(tempfile.gettempdir()).glob(f"mudpuppy-{cell.cell_id}-*"))


def test_an_interrupted_rerun_is_gone_on_with_and_not_begun_anew(tmp_path: Path) -> None:
    names = ["pass-a", "pass-b"]
    run(tmp_path, *names)

    def interrupt(event: Event) -> None:
        if isinstance(event, Finished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *names, rerun="all", on_event=interrupt)
    third = run(tmp_path, *names)

    assert starts(tmp_path) == [*names, "pass-a", "pass-b"]
    assert [cell.attempt for cell in third.cells] == [2, 2]
