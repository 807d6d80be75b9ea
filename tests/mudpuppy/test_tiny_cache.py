"""The cache of tiny models, their names and their command: complete, or built again."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from mudpuppy.cache import cache_root
from mudpuppy.errors import ModelError, OutputError
from mudpuppy.tiny import cache_folder, is_tiny_name, resolve_model
from mudpuppy.tiny.build import MANIFEST, write_manifest
from mudpuppy.tiny.cache import fill, is_complete
from mudpuppy.tiny.command import add_arguments, print_progress, run


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setenv("MUDPUPPY_CACHE", str(root))
    return root


def write_model(folder: Path) -> None:
    """Stand in for a build: one file, and the manifest last."""
    with (folder.parent / "builds.log").open("a") as log:
        log.write("x")
    (folder / "weights").write_text("1 2 3")
    time.sleep(0.2)
    write_manifest(folder, {})


def die_halfway(folder: Path) -> None:
    (folder / "weights").write_text("1 2")
    os.kill(os.getpid(), signal.SIGKILL)


def count_builds(root: Path) -> int:
    return len((root / "builds.log").read_text())


def names_in(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def start(target: Path, build: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=fill, args=(target, build))
    process.start()
    return process


def test_a_second_use_builds_nothing(cache: Path) -> None:
    target = cache / "m"
    assert fill(target, write_model) == fill(target, write_model) == target
    assert count_builds(cache) == 1
    fill(target, write_model, force=True)
    assert count_builds(cache) == 2
    assert names_in(cache) == {"m", ".m.lock", "builds.log"}


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest", "no manifest", "list"])
def test_a_damaged_entry_is_built_again(cache: Path, damage: str) -> None:
    target = fill(cache / "m", write_model)
    match damage:
        case "truncate":
            (target / "weights").write_text("1 2")
        case "delete":
            (target / "weights").unlink()
        case "manifest":
            (target / MANIFEST).write_text("{")
        case "no manifest":
            (target / MANIFEST).unlink()
        case _:
            (target / MANIFEST).write_text("[]")
    assert not is_complete(target)
    fill(target, write_model)
    assert is_complete(target)
    assert count_builds(cache) == 2


def test_a_killed_build_leaves_nothing_that_is_used(cache: Path) -> None:
    target = cache / "m"
    process = start(target, die_halfway)
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    assert not target.exists()
    fill(target, write_model)
    assert is_complete(target)
    assert names_in(cache) == {"m", ".m.lock", "builds.log"}


def test_a_failed_build_leaves_the_old_model(cache: Path) -> None:
    target = fill(cache / "m", write_model)

    def fail(folder: Path) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        fill(target, fail, force=True)
    assert is_complete(target)
    assert names_in(cache) == {"m", ".m.lock", "builds.log"}


def test_two_processes_at_once_build_once(cache: Path) -> None:
    target = cache / "m"
    processes = [start(target, write_model) for _ in range(3)]
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert is_complete(target)
    assert count_builds(cache) == 1


def test_a_cache_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="MUDPUPPY_CACHE"):
        fill(tmp_path / "file" / "m", write_model)


def test_the_cache_root_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("MUDPUPPY_CACHE")
    assert cache_root() == tmp_path / "xdg" / "mudpuppy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "mudpuppy"


def test_names_are_recognised() -> None:
    assert [is_tiny_name(name) for name in ("tiny", "tiny:qwen2", "tiny:")] == [True] * 3
    assert [is_tiny_name(name) for name in ("./tiny", "tinyllama", "a/tiny", "")] == [False] * 4


def test_other_names_are_returned_unchanged() -> None:
    assert resolve_model("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"


@pytest.mark.parametrize("name", ["tiny:qwen22", "tiny:", "tiny:../x"])
def test_an_unknown_family_is_an_error_that_lists_the_known(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_model(name)
    assert "tiny:mixtral" in str(caught.value)
    if name == "tiny:qwen22":
        assert "did you mean 'qwen2'" in str(caught.value)


def tiny_command(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(argv))


def test_the_command_builds_a_family_and_shows_it(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny_command("build", "--family", "qwen2") == 0
    folder = cache_folder("qwen2")
    assert folder.parent == cache
    assert is_complete(folder)
    assert f"tiny:qwen2: {folder}\n  content hash  " in capsys.readouterr().out
    assert resolve_model("tiny:qwen2") == str(folder)
    assert tiny_command("show") == 0
    shown = capsys.readouterr().out
    assert f"tiny: {cache_folder()} (not built yet)" in shown
    assert "139,840 parameters" in shown
    (folder / MANIFEST).unlink()
    tiny_command("show")
    assert f"tiny:qwen2: {folder} (damaged" in capsys.readouterr().out


def test_the_command_replaces_only_what_it_made(tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert tiny_command("build", "--family", "llama", "--output", str(output)) == 0
    with pytest.raises(OutputError, match="not empty"):
        tiny_command("build", "--family", "llama", "--output", str(output))
    assert tiny_command("build", "--family", "phi3", "--output", str(output), "--force") == 0
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="not empty"):
        tiny_command("build", "--family", "llama", "--output", str(mine), "--force")
    with pytest.raises(OutputError, match="is a file"):
        tiny_command("build", "--family", "llama", "--output", str(mine / "thesis.txt"))
    assert (mine / "thesis.txt").read_text() == "precious"
    assert names_in(tmp_path) == {"out", "mine"}


def test_an_unknown_family_is_refused_before_anything_is_written(cache: Path) -> None:
    with pytest.raises(ModelError, match="did you mean 'gemma3'"):
        tiny_command("build", "--family", "gemma33")
    assert not cache.exists()


def test_progress_is_a_few_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for step in range(1, 121):
        print_progress(step, 120, 0.5)
    assert capsys.readouterr().err.splitlines() == [
        f"tiny model: step {step} of 120, loss 0.500" for step in (50, 100, 120)
    ]


def test_a_manifest_without_files_is_not_complete(cache: Path) -> None:
    target = cache / "m"
    target.mkdir(parents=True)
    (target / MANIFEST).write_text('{"files": {}}')
    assert not is_complete(target)
