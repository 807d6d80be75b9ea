"""What is left of a run, compared bit by bit with what its undisturbed twin leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from harness.damages import DAMAGES, damage, newest_checkpoints, tear_dataset
from harness.remains import (
    compare_runs,
    find_half_written,
    find_leftovers,
    hash_tensors,
    weights_below,
)

STEP = {"epoch": 0.5, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.1, "eval_loss": None}


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    """A finished run: an adapter, the model merged below it, and two steps."""
    folder = tmp_path / "twin"
    (folder / "merged").mkdir(parents=True)
    save_file({"a": np.ones(4), "b": np.zeros(2)}, folder / "adapter_model.safetensors")
    save_file({"c": np.ones(8)}, folder / "merged" / "model.safetensors")
    for name in ("adapter_config.json", "mudpuppy.json", "merged/config.json"):
        (folder / name).write_text("{}")
    steps = (json.dumps({"step": n, **STEP, "elapsed_s": n}) for n in (1, 2))
    (folder / "steps.jsonl").write_text("\n".join(steps) + "\n")
    return folder


@pytest.fixture
def run(twin: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(twin, tmp_path / "run"))


def test_a_run_that_is_its_twin_differs_in_nothing(run: Path, twin: Path):
    assert ((), 5) == compare_runs(run, twin)
    assert () == find_half_written(run, twin)
    assert () == find_leftovers(run, twin)
    assert ("adapter_model.safetensors", "merged/model.safetensors") == weights_below(run)


def test_one_bit_of_one_tensor_is_named(run: Path, twin: Path):
    save_file({"a": np.ones(4), "b": np.array([0.0, 1e-300])}, run / "adapter_model.safetensors")

    assert (("adapter_model.safetensors: b",), 5) == compare_runs(run, twin)


def test_a_step_that_is_another_or_missing_is_named(run: Path, twin: Path):
    path = run / "steps.jsonl"
    path.write_text(path.read_text().splitlines()[0].replace("1.0,", "1.5,", 1) + "\n")

    assert ("steps.jsonl: line 1", "steps.jsonl: line 2") == compare_runs(run, twin)[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adapter_model.safetensors", "run: adapter_model.safetensors is missing"),
        ("merged/model.safetensors", "merged: model.safetensors is missing"),
    ],
)
def test_settings_without_their_weights_are_half_written(run: Path, twin: Path, name, said):
    (run / name).unlink()

    assert (said,) == find_half_written(run, twin)


def test_weights_without_settings_are_taken_for_nothing(run: Path, twin: Path):
    for name in ("adapter_config.json", "mudpuppy.json", "merged/config.json"):
        (run / name).unlink()
    (run / "adapter_model.safetensors").write_bytes(b"cut")

    assert () == find_half_written(run, twin)


def test_cut_weights_beside_their_settings_are_half_written(run: Path, twin: Path):
    path = run / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])

    assert ("run: adapter_model.safetensors holds other tensors",) == find_half_written(run, twin)
    with pytest.raises(ValueError, match=r"."):
        hash_tensors(path)


@pytest.fixture
def checkpoints(run: Path) -> Path:
    """Two checkpoints, each with the manifest that says it is whole."""
    for step in (9, 10):
        folder = run / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"a": np.full(64, step)}, folder / "adapter_model.safetensors")
        (folder / "optimizer.pt").write_bytes(bytes(range(200)))
        files = {
            path.name: {
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in folder.iterdir()
        }
        (folder / "mudpuppy-checkpoint.json").write_text(json.dumps({"files": files}))
    return run


def test_checkpoints_are_numbers_and_not_names(checkpoints: Path):
    assert ["checkpoint-10", "checkpoint-9"] == [p.name for p in newest_checkpoints(checkpoints)]


@pytest.mark.parametrize("name", [name for name in DAMAGES if name != "log-torn"])
def test_damage_shows_in_the_newest_checkpoint(checkpoints: Path, twin: Path, name: str):
    assert () == find_half_written(checkpoints, twin)
    damage(name, checkpoints)

    found = find_half_written(checkpoints, twin)
    assert all(one.startswith("checkpoint-10: ") for one in found[:1])
    has_manifest = (checkpoints / "checkpoint-10" / "mudpuppy-checkpoint.json").exists()
    assert bool(found) == has_manifest
    assert has_manifest == (name != "manifest-missing")


def test_a_torn_log_ends_in_the_middle_of_its_last_line(run: Path, twin: Path):
    damage("log-torn", run)

    assert ("steps.jsonl: line 2",) == compare_runs(run, twin)[0]
    assert not (run / "steps.jsonl").read_text().endswith("\n")


def test_a_torn_dataset_has_a_last_line_that_is_no_json(tmp_path: Path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.write_text('{"text": "one"}\n{"text": "two"}\n')

    assert 2 == tear_dataset(whole, torn)
    first, second = torn.read_text().splitlines()
    assert {"text": "one"} == json.loads(first)
    with pytest.raises(json.JSONDecodeError):
        json.loads(second)
