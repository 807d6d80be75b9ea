"""One file as the subject: what can be checked is, and nothing beside it is looked at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from harness.doctor import diagnose
from harness.findings import Status, Verdict
from harness.selftest.ward import Recovery
from mudpuppy.errors import ModelError
from tests.harness.checkpoints import edit_tensors, save_adapter, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("one") / "base")


def names(found) -> set[str]:
    return {result.name for result in found.findings}


def test_a_healthy_file_of_weights_is_healthy_and_says_what_is_unknown(base):
    found = diagnose(base / "model.safetensors")
    assert found.verdict is Verdict.HEALTHY, found.why
    assert found.facts["subjects"][0]["tensors"] > 10
    said = {r.reason for r in found.probes if r.is_unchecked}
    assert "only a file was given, without config.json; examine its folder" in said


def test_a_damaged_value_is_found_in_a_file(tmp_path, base):
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    first = torch.tensor([0])
    edit_tensors(
        tmp_path,
        lambda t: {
            k: v.index_fill(0, first, torch.nan) if "o_proj" in k else v for k, v in t.items()
        },
    )
    assert "weights-nonfinite" in names(diagnose(tmp_path / "model.safetensors"))


def test_nothing_beside_the_file_is_looked_at(tmp_path, base):
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text("{broken")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n.")
    assert diagnose(tmp_path / "model.safetensors").verdict is Verdict.HEALTHY
    assert diagnose(tmp_path).verdict is Verdict.SICK


def test_an_adapter_file_is_known_by_its_name_or_its_keys(tmp_path, base):
    folder = save_adapter(tmp_path / "a", base)
    usual, own = folder / "adapter_model.safetensors", tmp_path / "mine.safetensors"
    shutil.copy(usual, own)
    for path in (usual, own):
        found = diagnose(path, base=base)
        assert found.verdict is Verdict.HEALTHY, found.why
        assert found.facts["subjects"][0]["kind"] == "adapter"
        done = {r.name for r in found.probes if r.status is Status.PASSED}
        assert {"adapter-never-trained", "adapter-keys-dead"} <= done
    edit_tensors(folder, lambda t: {k: v * ("lora_B" not in k) for k, v in t.items()})
    assert names(diagnose(usual)) == {"adapter-never-trained"}


def test_a_pickle_is_listed_and_not_loaded(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    found = diagnose(path)
    assert names(found) == {"weights-pickled"}
    assert "os.system" in found.findings[0].message


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY" + bytes(60)])
def test_another_file_is_refused_with_what_is_expected(tmp_path, content):
    path = tmp_path / "weights.npy"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"no file of weights; expected .*\.gguf"):
        diagnose(path)


def test_a_file_without_an_ending_is_known_by_its_first_bytes(tmp_path, base):
    blob = tmp_path / "sha256-0123"
    shutil.copy(base / "model.safetensors", blob)
    assert diagnose(blob).verdict is Verdict.HEALTHY


def test_a_cut_file_is_found(tmp_path, base):
    path: Path = tmp_path / "model.safetensors"
    shutil.copy(base / "model.safetensors", path)
    with path.open("rb+") as handle:
        handle.truncate(path.stat().st_size - 100)
    assert names(diagnose(path)) == {"weights-truncated"}


def test_a_gguf_file_says_that_its_values_are_not_compared_with_the_base(tmp_path):
    patient = Recovery(tmp_path).get("gguf-with-base")
    found = diagnose(patient.path, **patient.options)
    for code in ("MPD401", "MPD405", "MPD411", "MPD413"):
        one = next(r for r in found.probes if r.code == code)
        assert one.status is Status.SKIPPED
        assert "GGUF gives tensors other names" in one.reason
