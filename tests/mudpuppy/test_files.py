"""A file or a folder is the old one or the new one, and what killed processes left is cleared."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from mudpuppy.files import atomic_folder, write_text_atomic


def put(folder: Path, text: str) -> None:
    (folder / "inner").mkdir()
    (folder / "inner/file").write_text(text)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def killed_in_the_middle(target: Path) -> None:
    with atomic_folder(target) as folder:
        put(folder, "half")
        os.kill(os.getpid(), signal.SIGKILL)


def run_killed(target: Path) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=killed_in_the_middle, args=(target,)
    )
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL


def test_a_folder_appears_whole_and_with_the_usual_permissions(tmp_path):
    with atomic_folder(tmp_path / "new") as folder:
        put(folder, "whole")
        assert not (tmp_path / "new").exists()
    (tmp_path / "usual").mkdir()

    assert names_in(tmp_path) == {"new", "usual"}
    assert (tmp_path / "new/inner/file").read_text() == "whole"
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("name", ["m", "m[1]", "m*"])
def test_what_a_killed_process_left_is_cleared_away(tmp_path, name):
    run_killed(tmp_path / name)
    assert len(names_in(tmp_path)) == 1
    assert not (tmp_path / name).exists()

    with atomic_folder(tmp_path / name) as folder:
        put(folder, "whole")
    assert names_in(tmp_path) == {name}


def test_what_a_living_process_fills_is_left_alone(tmp_path):
    with atomic_folder(tmp_path / "m", replace=True) as slow:
        put(slow, "slow")
        with atomic_folder(tmp_path / "m") as quick:
            put(quick, "quick")
        assert (slow / "inner/file").read_text() == "slow"
    assert (tmp_path / "m/inner/file").read_text() == "slow"
    assert names_in(tmp_path) == {"m"}


def test_other_hidden_files_are_not_ours(tmp_path):
    others = {".m.notes.tmp", ".m.12345678.bak", ".other.12345678.tmp", ".m.12345678x.tmp"}
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".m.abcdefgh.tmp").symlink_to(tmp_path / ".m.notes.tmp")
    with atomic_folder(tmp_path / "m") as folder:
        put(folder, "new")

    assert names_in(tmp_path) == {*others, ".m.abcdefgh.tmp", "m"}


def fill(target: Path, text: str, *, replace: bool, fails: bool = False) -> None:
    with atomic_folder(target, replace=replace) as folder:
        put(folder, text)
        if fails:
            raise RuntimeError("it fails")


@pytest.mark.parametrize(
    ("replace", "error"), [(True, RuntimeError), (False, OSError), (False, RuntimeError)]
)
def test_a_failure_leaves_the_old_folder(tmp_path, replace, error):
    fill(tmp_path / "m", "old", replace=False)

    with pytest.raises(error):
        fill(tmp_path / "m", "new", replace=replace, fails=error is RuntimeError)
    assert (tmp_path / "m/inner/file").read_text() == "old"
    assert names_in(tmp_path) == {"m"}


def test_a_folder_replaces_another(tmp_path):
    for text in ("old", "new"):
        fill(tmp_path / "m", text, replace=True)

    assert (tmp_path / "m/inner/file").read_text() == "new"
    assert names_in(tmp_path) == {"m"}


def test_a_move_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    fill(tmp_path / "m", "old", replace=True)
    rename = Path.rename

    def fail_for_the_new_one(path: Path, to: Path) -> Path:
        if "old" not in f"{path.name}{to.name}":
            raise OSError("no")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="no"):
        fill(tmp_path / "m", "new", replace=True)
    assert (tmp_path / "m/inner/file").read_text() == "old"
    assert names_in(tmp_path) == {"m"}


def test_a_text_replaces_another_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomic(path, "one")
    write_text_atomic(path, "two")

    assert path.read_text() == "two"
    assert names_in(tmp_path) == {"a.txt"}
