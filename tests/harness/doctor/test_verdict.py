"""The word for a checkpoint of which not everything was seen: never healthy."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.doctor import Judging, diagnose
from harness.doctor.acceptance import Acceptance
from harness.doctor.baseline import read_baseline
from harness.evidence.files import inventory
from harness.findings import Verdict
from reports.diagnosis_github import write_github
from reports.diagnosis_json import write_json
from tests.harness.checkpoints import save_base


@pytest.fixture
def base(tmp_path):
    return save_base(tmp_path / "base")


def split(folder, second):
    """Make two shards of a model, of which `second(path, tensors)` writes the other half."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = names[::2], names[1::2]
    files = "model-00001-of-00002.safetensors", "pytorch_model-00002-of-00002.bin"
    save_file({n: tensors[n] for n in halves[0]}, folder / files[0], {"format": "pt"})
    second(folder / files[1], {n: tensors[n] for n in halves[1]})
    mapping = {n: file for half, file in zip(halves, files, strict=True) for n in half}
    text = json.dumps({"metadata": {}, "weight_map": mapping})
    (folder / "model.safetensors.index.json").write_text(text)


def test_a_shard_whose_values_nobody_read_is_not_healthy(base):
    split(base, lambda path, tensors: torch.save(tensors, path))
    found = diagnose(base)
    assert (found.verdict, found.exit_code) == (Verdict.UNKNOWN, 3)
    assert "1 of 2 weight files were not read: pytorch_model-00002-of-00002.bin" in found.why
    (values,) = [one for one in found.probes if one.code == "MPD301"]
    assert "in 1 of 2 weight files" in values.message


def test_a_folder_of_more_files_than_are_listed_is_not_healthy(base, monkeypatch):
    monkeypatch.setattr(inventory, "NAME_LIMIT", 12)
    assert diagnose(base, depth="files").verdict is Verdict.HEALTHY
    for number in range(20):
        (base / f"a{number:02}").touch()
    found = diagnose(base, depth="files")
    assert found.verdict is Verdict.UNKNOWN
    assert "more than 12 files" in found.why


class Command:
    def __reduce__(self):
        return os.getcwd, ()


def test_files_that_matter_are_listed_before_others(base, monkeypatch):
    monkeypatch.setattr(inventory, "NAME_LIMIT", 12)
    for number in range(20):
        (base / f"a{number:02}").touch()
    (base / "training_args.bin").write_bytes(pickle.dumps(Command()))
    found = diagnose(base, depth="files")
    assert found.verdict is Verdict.SICK
    assert "MPD106" in found.why


def test_a_swapped_pickle_is_new_and_is_not_accepted_by_its_file(base, tmp_path):
    target = base / "training_args.bin"
    target.write_bytes(pickle.dumps(Command()))
    earlier = tmp_path / "earlier.json"
    earlier.write_text(write_json(diagnose(base, depth="files")))
    known = diagnose(base, Judging(baseline=read_baseline(earlier)), depth="files")
    assert known.verdict is Verdict.NO_WORSE
    target.write_bytes(pickle.dumps(os.getpid))
    assert (
        diagnose(base, Judging(baseline=read_baseline(earlier)), depth="files").verdict
        is Verdict.SICK
    )
    by_file = Acceptance(probe="MPD106", reason="ours", file="training_args.bin")
    assert diagnose(base, Judging(accepted=[by_file]), depth="files").verdict is Verdict.SICK
    by_name = replace(by_file, key="posix.getpid")
    assert diagnose(base, Judging(accepted=[by_name]), depth="files").verdict is Verdict.HEALTHY


def test_a_shard_that_is_cut_off_hides_no_nan_of_another(tmp_path):
    folder = save_base(tmp_path / "sharded", max_shard_size="60KB")
    first, *_, last = sorted(folder.glob("model-*.safetensors"))
    tensors = {name: value * float("nan") for name, value in load_file(first).items()}
    save_file(tensors, first, {"format": "pt"})
    last.write_bytes(last.read_bytes()[:-100])
    found = diagnose(folder)
    assert "weights-truncated" in found.why
    assert "weights-nonfinite" in found.why
    said = write_github(found)
    assert all(f"{one.code} {one.name}" in said for one in found.findings)
