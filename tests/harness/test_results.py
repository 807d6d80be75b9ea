"""Result files: what is written is read back, and what is foreign is refused by name."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.results import (
    CellResult,
    MatrixResult,
    Outcome,
    ResultError,
    Status,
    WorkerExit,
    judge_matrix,
    read_matrix_result,
    read_result,
    write_result,
)

CELL = CellResult(
    cell_id="67e8d56ca3c0",
    name="lora-fp16",
    title="LoRA + fp16",
    number=1,
    config={"method": "lora"},
    expect={"outcome": "trained"},
    outcome=Outcome.FAILED,
    status=Status.FAILED,
    message="1 finding",
    findings=({"code": "MPD203"},),
    worker=WorkerExit(exit_code=None, signal="SIGSEGV", wall_s=1.5, peak_rss_bytes=1024),
)


def test_a_cell_result_survives_its_file(tmp_path: Path) -> None:
    write_result(tmp_path, CELL)

    assert read_result(tmp_path) == CELL


def test_a_matrix_result_survives_its_file(tmp_path: Path) -> None:
    matrix = MatrixResult(
        name="seed", matrix="seed.yaml", folder="runs/seed", verdict=Status.FAILED, exit_code=1,
        counts={"failed": 1}, cells=(CELL,), environment={}, started="", finished="",
        kept=("lora-fp16",),
    )  # fmt: skip
    path = tmp_path / "report.json"
    path.write_text(json.dumps(matrix.to_json()), encoding="utf-8")

    assert read_matrix_result(path) == matrix


def test_a_folder_without_a_result_is_half_done(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "schema_version is 2, this version reads 1"),
        ({"schema_version": None}, "schema_version is None"),
        ({"colour": "red"}, "unknown fields: colour"),
        ({"outcome": "splendid"}, "outcome: Input should be 'passed'"),
        ({"worker": {"exit_code": 0}}, "worker.wall_s: Field required"),
    ],
)
def test_a_foreign_result_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**CELL.to_json(), **change}), encoding="utf-8")

    with pytest.raises(ResultError) as caught:
        read_result(tmp_path)

    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_a_loss_that_is_not_a_number_is_kept_and_is_valid_json(tmp_path: Path) -> None:
    finding = {"evidence": [{"found": float("inf")}]}

    write_result(tmp_path, replace(CELL, metrics={"loss_after": float("nan")}, findings=(finding,)))
    again = read_result(tmp_path)

    assert again is not None
    assert math.isnan(again.metrics["loss_after"])
    assert again.findings == ({"evidence": [{"found": "inf"}]},)
    assert "NaN" not in (tmp_path / "result.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("statuses", "verdict", "code"),
    [
        ("passed passed", "passed", 0),
        ("passed skipped", "passed", 0),
        ("passed failed skipped", "failed", 1),
        ("passed failed crashed", "crashed", 3),
        ("skipped", "skipped", 3),
        ("", "skipped", 3),
    ],
)
def test_the_exit_code_follows_the_worst_ending(statuses: str, verdict: str, code: int) -> None:
    found = judge_matrix(Status(word) for word in statuses.split())

    assert found[:2] == (Status(verdict), code)


@given(st.lists(st.sampled_from(Status)))
def test_only_a_matrix_that_passed_somewhere_and_failed_nowhere_exits_0(
    statuses: list[Status],
) -> None:
    _, code, counts = judge_matrix(statuses)

    bad = {Status.FAILED, Status.CRASHED} & set(statuses)
    assert (code == 0) == (Status.PASSED in statuses and not bad)
    assert sum(counts.values()) == len(statuses)


def test_every_outcome_is_one_of_the_four_endings() -> None:
    assert {outcome.status for outcome in Outcome} == set(Status)


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (WorkerExit(exit_code=1, wall_s=1, peak_rss_bytes=1), "exit code 1"),
        (CELL.worker, "ended by SIGSEGV"),
        (
            WorkerExit(
                exit_code=None, signal="SIGKILL", timed_out=True, wall_s=9, peak_rss_bytes=1
            ),
            "killed at its time limit after 9.0 s",
        ),
    ],
)
def test_the_ending_of_a_worker_is_said_in_words(ended: WorkerExit, words: str) -> None:
    assert ended.words == words


@pytest.mark.parametrize(
    "change",
    [
        {"status": "passed", "outcome": "failed"},
        {"metrics": None},
        {"environment": []},
        {"findings": [1, "x"]},
        {"number": "one"},
        {"worker": {"wall_s": "soon"}},
        {"outcome": None},
    ],
)
def test_a_result_that_cannot_be_is_refused(change):
    assert CellResult.from_json(CELL.to_json()) == CELL

    with pytest.raises(ResultError):
        CellResult.from_json({**CELL.to_json(), **change})


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 200_000, b'{"schema_version":1}', b""])
def test_a_damaged_result_file_is_told_as_one(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)

    with pytest.raises(ResultError):
        read_result(tmp_path)
