"""GPU slots: one cell each, and none for a device that keeps memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.execution import Plan
from harness.gpus import GpuSlots, find_slots, gpus_wanted, read_used_bytes
from harness.pools.spawn import SpawnPool
from harness.results import MatrixResult, Outcome
from harness.runner import run_matrix
from mudpuppy.errors import UsageError
from scenarios.schema import Expectation
from tests.harness import fake_worker


def run(run_dir: Path, cells: Any, slots: GpuSlots, jobs: int = 4) -> MatrixResult:
    return run_matrix(
        cells, run_dir, judge=fake_worker.judge, jobs=jobs,
        pool=SpawnPool(fake_worker.COMMAND), plan=Plan(gpus=slots),
    )  # fmt: skip


def seen_by(run_dir: Path, matrix: MatrixResult) -> list[str]:
    texts = [
        (run_dir / cell.cell_id / "observations.json").read_text(encoding="utf-8")
        for cell in matrix.cells
    ]
    return [json.loads(text)["environment"]["CUDA_VISIBLE_DEVICES"] for text in texts]


def test_cells_side_by_side_get_different_gpus_and_those_without_need_none(tmp_path: Path):
    cells = fake_worker.make_cells("slow-a", "slow-b", "pass-c", "pass-d")
    cells[2] = replace(cells[2], config={**cells[2].config, "device": "cpu"})
    cells[3] = replace(cells[3], expect=Expectation(outcome="rejected", code="MP-R07"))

    matrix = run(tmp_path, cells, GpuSlots(("0", "1"), lambda device: 0))

    assert ["0", "1", "", ""] == seen_by(tmp_path, matrix)


def test_a_cell_may_need_two_gpus_and_waits_for_both(tmp_path: Path):
    cells = fake_worker.make_cells("pass-a", "pass-b", "pass-c")
    cells[1] = replace(cells[1], needs=("two-gpus",))

    matrix = run(tmp_path, cells, GpuSlots(("3", "5"), lambda device: 0))

    assert "3,5" == seen_by(tmp_path, matrix)[1]
    assert 2 == gpus_wanted(cells[1])


def test_a_gpu_that_keeps_memory_is_set_aside_and_the_cell_is_not_believed(tmp_path: Path):
    used = {"0": iter([100, *[2**30] * 1000]), "1": iter([100] * 1000)}
    slots = GpuSlots(("0", "1"), lambda device: next(used[device]), settle_s=0.1)

    matrix = run(tmp_path, fake_worker.make_cells("pass-a", "pass-b", "pass-c"), slots, jobs=1)

    assert Outcome.INFRASTRUCTURE is matrix.cells[0].outcome
    assert "GPU 0 still holds 1024 MiB more than before" in matrix.cells[0].message
    assert ["0", "1", "1"] == seen_by(tmp_path, matrix)
    assert 3 == matrix.exit_code


def test_when_no_gpu_is_left_the_rest_says_so(tmp_path: Path):
    used = iter([0, *[2**30] * 1000])
    slots = GpuSlots(("0",), lambda device: next(used), settle_s=0.05)

    matrix = run(tmp_path, fake_worker.make_cells("pass-a", "pass-b"), slots)

    assert [Outcome.INFRASTRUCTURE] * 2 == [cell.outcome for cell in matrix.cells]
    assert matrix.cells[1].message.startswith("no GPU is left for it: GPU 0 still holds")


def test_memory_that_comes_back_late_is_waited_for():
    used = iter([0, 2**30, 2**30, 100])
    slots = GpuSlots(("0",), lambda device: next(used), settle_s=5.0)

    assert ("", {}) == (slots.give_back(slots.take(1)), slots.set_aside)


def test_the_memory_of_amd_cards_is_read_in_the_order_of_their_addresses(tmp_path: Path):
    for card, address, used in (("card0", "0000:43:00.0", 7), ("card1", "0000:03:00.0", 5)):
        device = tmp_path / "sys/devices" / address
        device.mkdir(parents=True)
        (device / "mem_info_vram_used").write_text(f"{used}\n", encoding="utf-8")
        (tmp_path / "sys/class/drm" / card).mkdir(parents=True)
        (tmp_path / "sys/class/drm" / card / "device").symlink_to(device)

    assert [5, 7, None] == [read_used_bytes(one, tmp_path) for one in ("0", "1", "2")]


@pytest.mark.parametrize("word", ["0,0", "a", "0,", "", "-1"])
def test_a_wrong_word_is_refused(word: str):
    with pytest.raises(UsageError, match="expected different numbers with commas"):
        find_slots(word)


def test_numbers_are_taken_as_they_stand(monkeypatch: pytest.MonkeyPatch):
    found = find_slots("2,0")
    monkeypatch.setattr("harness.gpus.count_gpus", lambda: (0, ""))

    assert found is not None
    assert ["2", "0"] == list(found.names)
    assert find_slots("auto") is None
