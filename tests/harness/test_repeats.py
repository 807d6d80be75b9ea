"""Repetition and order: flaky is a verdict, the longest go first, the first failure may end it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from harness.cell_folder import SCRATCH_FILE
from harness.execution import Plan
from harness.pools.base import Job
from harness.pools.spawn import SpawnPool
from harness.process import Worker
from harness.queue import CellQueue
from harness.results import CellResult, MatrixResult, Outcome, Status, read_result
from harness.runner import run_matrix
from tests.harness import fake_worker
from tests.harness.test_runner import starts, wait_until


def run(run_dir: Path, *names: str, jobs: int = 1, **plan: Any) -> MatrixResult:
    pool = fake_worker.make_warm_pool()
    try:
        return run_matrix(
            fake_worker.make_cells(*names), run_dir, judge=fake_worker.judge, jobs=jobs,
            pool=pool, plan=Plan(**plan),
        )  # fmt: skip
    finally:
        pool.close()


def test_a_cell_that_passes_only_sometimes_is_flaky_and_never_passed(tmp_path: Path):
    matrix = run(tmp_path, "pass", "sometimes", "fail", repeat=3)

    steady, flaky, bad = matrix.cells
    assert [Outcome.PASSED, Outcome.FLAKY, Outcome.FAILED] == [c.outcome for c in matrix.cells]
    assert flaky.message.startswith("passed 2 of 3 times with the same code; else crashed: ")
    assert (3.0, 2.0) == (flaky.metrics["repeats"], flaky.metrics["passed"])
    assert "one of those days" in flaky.log_tail
    assert ("as expected (3 times)", 3) == (steady.message, steady.attempt)
    assert 0.0 == bad.metrics["passed"]
    assert (Status.FAILED, 1) == (matrix.verdict, matrix.exit_code)
    assert [3, 3, 3] == [starts(tmp_path).count(c.name) for c in matrix.cells]


def test_every_attempt_is_kept(tmp_path: Path):
    (cell,) = run(tmp_path, "sometimes", repeat=3).cells

    aside = [read_result(tmp_path / "attempts" / f"{cell.cell_id}-{n}") for n in (1, 2)]
    assert ["passed", "crashed"] == [str(one.outcome) for one in aside if one]
    assert read_result(tmp_path / cell.cell_id) == cell


def test_single_attempts_are_told_apart_from_the_verdict(tmp_path: Path):
    from harness.execution import RunOptions
    from harness.runner import run_cells

    told: list[CellResult] = []
    pool = fake_worker.make_warm_pool()
    options = RunOptions(
        judge=fake_worker.judge, pool=pool, environment={}, plan=Plan(repeat=2),
        on_attempt=told.append,
    )  # fmt: skip

    cells = fake_worker.make_cells("sometimes")
    verdicts = list(run_cells(cells, tmp_path, options))
    pool.close()

    assert ["flaky"] == [str(one.outcome) for one in verdicts]
    assert [("passed", 1), ("crashed", 2)] == [(str(one.outcome), one.attempt) for one in told]


def test_the_first_failure_ends_the_run_and_the_rest_is_gone_on_with(tmp_path: Path):
    names = ("pass-a", "fail-b", "pass-c", "pass-d")

    first = run(tmp_path, *names, fail_fast=True)
    second = run(tmp_path, *names)

    assert ["passed", "failed", "not-run", "not-run"] == [str(c.outcome) for c in first.cells]
    assert "--fail-fast" in first.cells[2].message
    assert 1 == first.exit_code
    assert ("pass-a", "fail-b") == second.kept
    assert ["passed", "failed", "passed", "passed"] == [str(c.outcome) for c in second.cells]


def test_what_ended_together_with_the_first_failure_has_its_result_too(tmp_path: Path):
    class BothAtOnce(SpawnPool):
        def start(self, job: Job) -> Worker:
            started = super().start(job)
            if len(list(tmp_path.glob("*/config.json"))) == 2:
                wait_until(lambda: len(list(tmp_path.glob("*/observations.json"))) == 2)
                time.sleep(2)  # what has been observed has only to leave
            return started

    cells = fake_worker.make_cells("fail-a", "pass-b", "pass-c")
    matrix = run_matrix(
        cells, tmp_path, judge=fake_worker.judge, jobs=2,
        pool=BothAtOnce(fake_worker.COMMAND), plan=Plan(fail_fast=True),
    )  # fmt: skip

    assert ["failed", "passed", "not-run"] == [str(one.outcome) for one in matrix.cells]
    assert [] == list(tmp_path.glob(f"*/{SCRATCH_FILE}"))


def test_unknown_cells_go_first_and_then_the_longest(tmp_path: Path):
    cells = {cell.name: cell.cell_id for cell in fake_worker.make_cells("a", "b", "c", "d")}

    run(tmp_path, "a", "b", "c", "d", durations={cells["a"]: 1.0, cells["c"]: 9.0})

    assert ["b", "d", "c", "a"] == starts(tmp_path)


def test_a_suspect_runs_alone_and_last():
    queue = CellQueue(fake_worker.make_cells("a", "b", "c"))
    first = queue.take(0, 2)
    assert first is not None
    assert queue.lose(first)

    second, third = queue.take(1, 3), queue.take(2, 3)
    assert ["b", "c"] == [cell.name for cell in (second, third) if cell]
    assert queue.take(2, 3) is None  # the suspect waits until nobody else runs
    assert first == queue.take(0, 3)
    queue.again(fake_worker.make_cells("d")[0])
    assert queue.take(1, 3) is None  # and nobody starts beside it
    assert not queue.lose(first)
