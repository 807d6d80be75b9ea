"""What cells need and what a machine has: a need that is not met leaves the cell out, with why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.needs import Machine, count_gpus, leave_out_unmet, look_at_machine, needs_of
from harness.selection import Selection
from scenarios.schema import Expectation
from tests.harness.test_judge import make_cell

PLAIN = make_cell()


def with_config(**settings: object):
    return replace(PLAIN, config={**PLAIN.config, **settings})


def test_a_plain_cell_runs_anywhere():
    assert () == needs_of(PLAIN)
    assert "" == Machine().lacks(PLAIN)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (with_config(device="cuda"), "needs a GPU"),
        (replace(with_config(device="cuda"), needs=("gpu",)), "needs a GPU"),
        (replace(PLAIN, needs=("gpu", "network")), "needs a GPU and the network"),
        (with_config(compile=True), "needs a C++ compiler or Triton"),
        (replace(PLAIN, needs=("root",)), "needs root"),
    ],
)
def test_an_unmet_need_is_named(cell, words):
    assert Machine().lacks(cell).startswith(words)


def test_one_gpu_is_not_two():
    assert "needs two GPUs" == Machine(gpus=1).lacks(replace(PLAIN, needs=("two-gpus",)))
    assert "" == Machine(gpus=2).lacks(replace(PLAIN, needs=("two-gpus", "gpu")))


def test_a_rejection_needs_nothing():
    rejected = Expectation(outcome="rejected", code="MP-R57")

    assert "" == Machine().lacks(replace(with_config(device="cuda", compile=True), expect=rejected))


def test_left_out_cells_keep_their_reason_beside_those_of_the_selection():
    before = Selection(chosen=(PLAIN, with_config(device="cuda")), left_out=((PLAIN, "ignored"),))

    after = leave_out_unmet(before, Machine(remark="no driver"))

    assert (PLAIN,) == after.chosen
    assert ["ignored", "needs a GPU (no driver)"] == [why for _, why in after.left_out]


def test_the_network_is_allowed_and_never_tried():
    assert "network" not in look_at_machine().has
    assert "network" in look_at_machine(["network"]).has


def make_amd(root: Path, count: int, *, door: bool) -> None:
    for index in range(count):
        node = root / f"sys/class/kfd/kfd/topology/nodes/{index}"
        node.mkdir(parents=True)
        (node / "properties").write_text("gfx_target_version 110000\n")
    (root / "dev").mkdir()
    if door:
        (root / "dev/kfd").write_text("")


def test_no_gpu_is_no_gpu(tmp_path: Path):
    assert (0, "") == count_gpus(tmp_path, {})


def test_amd_gpus_are_counted_by_the_kernel(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("harness.needs._torch_version", lambda: "2.13.0+rocm7.2")
    make_amd(tmp_path, 2, door=True)

    assert (2, "") == count_gpus(tmp_path, {})
    assert (1, "HIP_VISIBLE_DEVICES hides 1") == count_gpus(tmp_path, {"HIP_VISIBLE_DEVICES": "1"})
    assert 0 == count_gpus(tmp_path, {"CUDA_VISIBLE_DEVICES": ""})[0]


def test_an_amd_gpu_that_cannot_be_opened_is_none(tmp_path: Path):
    make_amd(tmp_path, 1, door=False)

    assert (0, "1 AMD, but /dev/kfd cannot be opened") == count_gpus(tmp_path, {})


def test_nvidia_gpus_are_counted_by_the_driver_and_a_cpu_torch_sees_none(tmp_path, monkeypatch):
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    monkeypatch.setattr("harness.needs._torch_version", lambda: "2.13.0+cu130")
    assert (1, "") == count_gpus(tmp_path, {})

    monkeypatch.setattr("harness.needs._torch_version", lambda: "2.13.0+cpu")
    count, remark = count_gpus(tmp_path, {})
    assert 0 == count
    assert "2.13.0+cpu" in remark


def test_every_device_cell_needs_a_gpu_and_its_trial_knows_its_options():
    from harness.matrix import load_cells
    from harness.trials.limits import LimitOptions
    from harness.trials.soak import SoakOptions

    forms = {"limits": LimitOptions, "soak": SoakOptions}
    cells = load_cells("device")

    assert all(Machine().lacks(cell).startswith("needs a GPU") or cell.needs for cell in cells)
    assert {"", "needs two GPUs"} == {
        Machine(gpus=1, has=frozenset({"compiler"})).lacks(c) for c in cells
    }
    for cell in cells:
        if cell.trial in forms:
            forms[cell.trial].model_validate(cell.options)


@pytest.mark.parametrize("name", ["soak", "limits", "interop", "versions", "curriculum"])
def test_the_options_of_every_shipped_trial_cell_are_known(name: str):
    from harness.matrix import load_cells
    from harness.trials.curriculum import CurriculumOptions
    from harness.trials.interop import InteropOptions
    from harness.trials.limits import LimitOptions
    from harness.trials.soak import SoakOptions
    from harness.trials.versions import VersionOptions

    form = {
        "soak": SoakOptions,
        "limits": LimitOptions,
        "interop": InteropOptions,
        "versions": VersionOptions,
        "curriculum": CurriculumOptions,
    }[name]
    for cell in load_cells(name):
        assert name == cell.trial
        form.model_validate(cell.options)
