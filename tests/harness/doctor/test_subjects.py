"""Which folders are examined, and what is said of a folder in which there is nothing to examine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.doctor import diagnose
from harness.findings import Verdict
from tests.harness.checkpoints import edit_tensors, save_adapter, save_base, save_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("subjects") / "base")


def subjects(path: Path) -> list[str]:
    return [facts["subject"] for facts in diagnose(path).facts["subjects"]]


def test_an_adapter_inside_a_model_or_an_adapter_is_examined(tmp_path, base):
    for name, save in (("m", save_base), ("a", lambda folder: save_adapter(folder, base))):
        folder = save(tmp_path / name)
        save_adapter(folder / "reference", base)
        (folder / "logs").mkdir()
        assert subjects(folder) == [".", "reference"]
        edit_tensors(folder / "reference", lambda t: {k: v * 0 for k, v in t.items()})
        found = diagnose(folder)
        assert {(r.name, r.subject) for r in found.findings} == {
            ("adapter-never-trained", "reference")
        }


def why(folder: Path) -> str:
    found = diagnose(folder)
    assert found.verdict is Verdict.UNKNOWN
    return found.why


def test_a_folder_above_several_checkpoints_names_them(tmp_path, base):
    for name in ("first", "second"):
        save_adapter(tmp_path / name, base)
    said = why(tmp_path)
    assert "first, second" in said
    assert said.endswith(f"such as {tmp_path / 'first'}")


def test_a_folder_around_one_checkpoint_names_it(tmp_path, base):
    save_adapter(tmp_path / "only", base)
    assert why(tmp_path).endswith(f"but only in it does; examine {tmp_path / 'only'}")


def test_what_lies_in_a_folder_without_weights_is_said(tmp_path):
    assert "the folder is empty" in why(tmp_path)
    save_tokenizer(tmp_path, 10)
    assert "holds a tokenizer (tokenizer.json) and no weights" in why(tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"\x80\x02N.")
    assert "are pickles (weights.pt)" in why(tmp_path)


def test_settings_alone_and_strange_files_are_said_too(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert "no model weights, only notes.txt" in why(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "config.json and no weights" in why(tmp_path)


def make_cache(root: Path, base: Path, *revisions: str) -> Path:
    """Lay a model out as a model hub's cache does: files are links into `blobs`."""
    folder = root / "models--owner--name"
    (folder / "blobs").mkdir(parents=True)
    for revision in revisions:
        (folder / "snapshots" / revision).mkdir(parents=True)
        for number, file in enumerate(sorted(base.iterdir())):
            blob = folder / "blobs" / f"{revision}{number}"
            blob.write_bytes(file.read_bytes())
            (folder / "snapshots" / revision / file.name).symlink_to(f"../../blobs/{blob.name}")
    return folder


def test_the_cache_of_a_model_hub_is_opened_at_its_main_revision(tmp_path, base):
    folder = make_cache(tmp_path, base, "abc", "def")
    assert subjects(folder) == ["snapshots/abc", "snapshots/def"]
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("def\n")
    assert subjects(folder) == ["snapshots/def"]
    assert diagnose(folder).verdict is Verdict.HEALTHY
    assert "models--owner--name" in why(tmp_path)
    (folder / "refs" / "main").write_text("../../..")
    assert subjects(folder) == ["snapshots/abc", "snapshots/def"]
