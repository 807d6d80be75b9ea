"""The word for a checkpoint of which not everything was seen: never healthy."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.doctor import diagnose
from harness.evidence.files import inventory
from harness.findings import Verdict
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
