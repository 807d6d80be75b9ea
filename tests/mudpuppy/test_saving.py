"""Saving is all or nothing, and never saves what is not finite."""

import json
import math
import os
import stat
import threading
from pathlib import Path

import pytest
import torch

from mudpuppy.errors import EngineError
from mudpuppy.files import write_json_atomic, write_text_atomic
from mudpuppy.leftovers import forget_moves, holds_only_leftovers, remove_unfinished
from mudpuppy.saving import save_model, staging
from mudpuppy.tiny import resolve_model


def test_staged_files_appear_together_when_the_block_ends(tmp_path: Path):
    with staging(tmp_path) as folder:
        (folder / "a").write_text("1")
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text("2")
        assert not (tmp_path / "a").exists()

    assert ["a", "sub"] == sorted(path.name for path in tmp_path.iterdir())
    assert "2" == (tmp_path / "sub" / "b").read_text()


def test_what_makes_a_model_is_moved_last_and_the_manifest_after_it(tmp_path: Path, monkeypatch):
    moved, rename = [], Path.rename

    def note(path: Path, target: Path) -> Path:
        moved.append(path.name)
        return rename(path, target)

    with staging(tmp_path) as folder:
        for name in ("mudpuppy.json", "adapter_config.json", "config.json", "tokens", "a"):
            (folder / name).write_text(name)
        monkeypatch.setattr(Path, "rename", note)

    assert ["a", "tokens", "adapter_config.json", "config.json", "mudpuppy.json"] == moved


def test_an_interrupt_between_two_moves_takes_back_what_was_moved(tmp_path: Path, monkeypatch):
    (tmp_path / "theirs").write_text("x")
    rename = Path.rename

    def interrupt(path: Path, target: Path) -> Path:
        if path.name == "b":
            raise KeyboardInterrupt
        return rename(path, target)

    def save() -> None:
        with staging(tmp_path) as folder:
            (folder / "a").write_text("1")
            (folder / "b").write_text("2")
            monkeypatch.setattr(Path, "rename", interrupt)

    with pytest.raises(KeyboardInterrupt):
        save()
    assert ["theirs"] == [path.name for path in tmp_path.iterdir()]


def test_staged_files_get_the_permissions_of_new_files(tmp_path: Path):
    (tmp_path / "normal").write_text("")
    with staging(tmp_path) as folder:
        (folder / "private").touch(mode=0o600)

    assert (tmp_path / "normal").stat().st_mode == (tmp_path / "private").stat().st_mode


def test_an_error_while_staging_leaves_nothing(tmp_path: Path):
    def save_half() -> None:
        with staging(tmp_path) as folder:
            (folder / "a").write_text("1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        save_half()
    assert [] == list(tmp_path.iterdir())


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "x.json"
    write_json_atomic(path, {"a": 1})

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(path, {"a": math.nan})
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "half a pair \ud800")

    assert {"a": 1} == json.loads(path.read_text())
    assert ["x.json"] == [entry.name for entry in tmp_path.iterdir()]


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path):
    path, got = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_text()), daemon=True)
    reader.start()

    write_text_atomic(path, "through the pipe")

    assert stat.S_ISFIFO(path.stat().st_mode)
    reader.join(timeout=10)
    assert ["through the pipe"] == got


def test_what_a_link_points_to_is_replaced_and_the_link_stays(tmp_path: Path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "x.txt", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)

    write_text_atomic(link, "new")

    assert link.is_symlink()
    assert "new" == target.read_text()


def test_a_saved_model_generates_with_its_cache_again(tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = resolve_model("tiny:llama")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.config.use_cache = False  # as gradient checkpointing leaves it

    save_model(model, AutoTokenizer.from_pretrained(base), tmp_path / "out", torch.float32)

    assert json.loads((tmp_path / "out" / "config.json").read_text())["use_cache"] is True


@pytest.mark.parametrize("value", [float("nan"), 70000.0], ids=["nan", "too large for fp16"])
def test_a_weight_that_is_not_finite_in_its_type_is_not_saved(tmp_path: Path, value: float):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = resolve_model("tiny:llama")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = value

    with pytest.raises(EngineError, match=r"layers.1.mlp.up_proj.weight is not finite"):
        save_model(model, AutoTokenizer.from_pretrained(base), tmp_path / "out", torch.float16)
    assert not (tmp_path / "out").exists()


def test_a_set_whose_manifest_never_came_is_known_as_ours(tmp_path: Path):
    with staging(tmp_path, manifest_follows=True) as folder:
        (folder / "config.json").write_text("{}")
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / ".mudpuppy.json.x1.tmp").write_text("{")

    assert holds_only_leftovers(tmp_path)
    (tmp_path / "theirs").write_text("x")
    assert not holds_only_leftovers(tmp_path)
    remove_unfinished(tmp_path)
    assert ["theirs"] == [path.name for path in tmp_path.iterdir()]


def test_a_set_with_its_manifest_stays_and_its_list_goes(tmp_path: Path):
    with staging(tmp_path, manifest_follows=True) as folder:
        (folder / "config.json").write_text("{}")
    (tmp_path / "mudpuppy.json").write_text("{}")
    forget_moves(tmp_path)

    assert ["config.json", "mudpuppy.json"] == sorted(path.name for path in tmp_path.iterdir())
    remove_unfinished(tmp_path)
    assert (tmp_path / "config.json").is_file()
