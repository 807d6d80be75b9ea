"""The warm pool under the runner: the endings of forks, and what a killed zygote costs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.matrix import Cell
from harness.pools.warm import WarmPool
from harness.results import MatrixResult, Outcome, Started
from harness.runner import run_matrix
from tests.harness import fake_worker
from tests.harness.test_runner import is_alive, starts, wait_until


@pytest.fixture
def pool() -> Iterator[WarmPool]:
    made = fake_worker.make_warm_pool()
    yield made
    made.close()


def run(
    pool: WarmPool, run_dir: Path, *names: str, timeout_s: float = 30.0, **options: Any
) -> MatrixResult:
    cells = fake_worker.make_cells(*names, timeout_s=timeout_s)
    return run_matrix(cells, run_dir, judge=fake_worker.judge, pool=pool, **options)


def outcomes(matrix: MatrixResult) -> list[str]:
    return [str(cell.outcome) for cell in matrix.cells]


def test_forks_end_as_interpreters_do(pool: WarmPool, tmp_path: Path):
    matrix = run(pool, tmp_path, "pass", "segfault", "raise", "leave", "fail", jobs=2)

    ends = [cell.worker for cell in matrix.cells if cell.worker]
    assert ["passed", "crashed", "crashed", "passed", "failed"] == outcomes(matrix)
    assert [0, None, 1, 0, 0] == [one.exit_code for one in ends]
    assert "SIGSEGV" == ends[1].signal
    assert 1 == ends[3].killed_leftovers
    assert "Segmentation fault" in matrix.cells[1].log_tail
    assert "RuntimeError: the worker broke" in matrix.cells[2].log_tail
    assert {"engine"} == {one.preload for one in ends}


@pytest.mark.parametrize("name", ["hang", "escape"])
def test_a_hang_ends_at_the_limit_with_its_stack_and_no_grandchild(
    pool: WarmPool, tmp_path: Path, name: str
):
    (result,) = run(pool, tmp_path, name, timeout_s=0.5).cells

    pid = int((tmp_path / result.cell_id / "grandchild.pid").read_text(encoding="utf-8"))
    assert Outcome.TIMEOUT is result.outcome
    assert "in _hang" in result.log_tail
    wait_until(lambda: not is_alive(pid))


def test_a_cell_that_needs_a_fresh_interpreter_gets_one(pool: WarmPool, tmp_path: Path):
    from dataclasses import replace

    cells = [replace(cell, needs_fresh=True) for cell in fake_worker.make_cells("pass")]

    (result,) = run_matrix(cells, tmp_path, judge=fake_worker.judge, pool=pool).cells

    assert result.worker is not None
    assert ("none", "passed") == (result.worker.preload, result.outcome)
    assert () == pool.zygote_pids()


def test_a_cell_that_kills_what_forks_it_is_parked_and_no_other_suffers(
    pool: WarmPool, tmp_path: Path
):
    names = ("pass-a", "patricide", "slow-b", "pass-c")

    matrix = run(pool, tmp_path, *names, jobs=3)

    assert ["passed", "lost", "passed", "passed"] == outcomes(matrix)
    assert 2 == starts(tmp_path).count("patricide")
    assert 2 == matrix.cells[1].attempt
    assert "also when it ran alone" in matrix.cells[1].message
    assert 3 == matrix.exit_code


def test_what_a_killed_zygote_took_along_runs_again(pool: WarmPool, tmp_path: Path):
    names = ("slow-a", "slow-b", "pass-c")
    seen: list[int] = []

    def kill_once(event: Any) -> None:
        if isinstance(event, Started) and not seen:
            seen.append(0)
            threading.Thread(target=kill).start()

    def kill() -> None:
        wait_until(lambda: len(starts(tmp_path)) == 2)
        seen.extend(pool.zygote_pids())
        for pid in pool.zygote_pids():
            os.kill(pid, signal.SIGKILL)

    matrix = run(pool, tmp_path, *names, jobs=2, on_event=kill_once)

    assert ["passed"] * 3 == outcomes(matrix)
    assert len(seen) == 2
    assert sorted([*names, "slow-a", "slow-b"]) == sorted(starts(tmp_path))


def test_closing_ends_the_zygotes_and_what_runs_in_them(tmp_path: Path):
    pool = fake_worker.make_warm_pool()
    stop = KeyboardInterrupt("stop")
    running: list[Cell] = []

    def interrupt(event: Any) -> None:
        running.append(event)
        wait_until(lambda: len(starts(tmp_path)) == len(running))
        if len(running) == 2:
            raise stop

    with pytest.raises(KeyboardInterrupt):
        run(pool, tmp_path, "hang-a", "hang-b", jobs=2, on_event=interrupt)
    pids = [int(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*/grandchild.pid")]
    zygotes = pool.zygote_pids()
    pool.close()

    time.sleep(0.05)
    assert not [pid for pid in (*pids, *zygotes) if is_alive(pid)]
