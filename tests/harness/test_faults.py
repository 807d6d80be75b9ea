"""Faults really happen, at their moment, and say so; one that never came is known."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from harness.attempts import start_attempt
from harness.facts.faults import Ending
from harness.faults import ACTS, MOMENTS, Arming, Moment, arm, read_note

HERE = Moment(calls=("a_fake_engine:write",), turn=2)


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An engine that writes files of eight bytes, and says when it is done."""
    module = ModuleType("a_fake_engine")

    def write(tensors: object, path: Path) -> None:
        del tensors
        path.write_text("12345678")

    vars(module)["write"] = write
    monkeypatch.setitem(sys.modules, "a_fake_engine", module)
    return module


def disturb(fault: str, tmp_path: Path, moment: Moment = HERE, limit_s: float = 30.0) -> Ending:
    """Let a process with the fault armed write three files."""
    (tmp_path / "out").mkdir(exist_ok=True)

    def work() -> int:
        arm(fault, moment, Arming(folder=tmp_path, output=tmp_path / "out", disk=tmp_path / "out"))
        for name in "abc":
            vars(sys.modules["a_fake_engine"])["write"](None, tmp_path / "out" / name)
        return 0

    return start_attempt("attempt", work, tmp_path / "command", timeout_s=limit_s).wait()


def written(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("fault", "ends"), [("kill", "SIGKILL"), ("term", "SIGTERM"), ("interrupt", "1")]
)
def test_a_signal_comes_before_the_second_call(tmp_path: Path, fault: str, ends: str):
    ending = disturb(fault, tmp_path)

    assert ends == ending.words
    assert ["a"] == written(tmp_path)
    assert {"finished": []} == read_note(tmp_path)
    assert ending.traceback == (fault == "interrupt")


def test_a_fault_whose_moment_never_comes_leaves_no_note(tmp_path: Path):
    ending = disturb("kill", tmp_path, Moment(calls=HERE.calls, turn=9))

    assert "0" == ending.words
    assert read_note(tmp_path) is None


def test_only_calls_about_the_place_that_is_meant_are_counted(tmp_path: Path):
    disturb("kill", tmp_path, Moment(calls=HERE.calls, where="/c"))

    assert ["a", "b"] == written(tmp_path)


def test_half_of_the_file_is_there_when_the_fault_comes(tmp_path: Path):
    disturb("kill", tmp_path, Moment(calls=HERE.calls, turn=2, half=True))

    assert ["a", "b"] == written(tmp_path)
    assert "1234" == (tmp_path / "out" / "b").read_text()


def test_a_closed_folder_is_closed_to_root_too(tmp_path: Path):
    ending = disturb("read-only", tmp_path)
    (tmp_path / "out").chmod(0o755)

    assert "1" == ending.words
    assert "Permission denied" in ending.said[-1]


def test_long_files_cannot_be_written_under_a_limit(tmp_path: Path, engine: ModuleType):
    def write(tensors: object, path: Path) -> None:
        del tensors
        path.write_bytes(bytes(100_000))

    vars(engine)["write"] = write
    ending = disturb("file-limit", tmp_path)

    assert "File too large" in ending.said[-1]
    assert 100_000 == (tmp_path / "out" / "a").stat().st_size


def test_memory_is_really_refused(tmp_path: Path):
    ending = disturb("out-of-memory", tmp_path)

    assert "can't allocate memory" in "\n".join(ending.said)


def test_the_clock_goes_back(tmp_path: Path, engine: ModuleType):
    def write(tensors: object, path: Path) -> None:
        del tensors
        path.write_text(str(time.time()))

    vars(engine)["write"] = write
    disturb("clock-back", tmp_path)

    first, second = (float((tmp_path / "out" / name).read_text()) for name in "ab")
    assert -86_410 < second - first < -86_390


def test_what_hangs_is_ended_at_its_limit_with_its_children(tmp_path: Path):
    ending = disturb("hang", tmp_path, limit_s=1.0)

    assert ("SIGTERM", True, 1) == (ending.words, ending.timed_out, ending.children_left)
    grandchild = int((tmp_path / "grandchild").read_text())
    stat = Path(f"/proc/{grandchild}/stat")
    assert not stat.exists() or ") Z" in stat.read_text()


def test_a_disk_that_is_filled_is_full(tmp_path: Path):
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")

    def work() -> int:
        from harness.faults import mount_small_disk

        (tmp_path / "disk").mkdir()
        mount_small_disk(tmp_path / "disk", 1 << 20)
        ACTS["full-disk"](Arming(folder=tmp_path, output=tmp_path / "disk", disk=tmp_path / "disk"))
        (tmp_path / "disk" / "one more").write_bytes(b"x")
        return 0

    ending = start_attempt("attempt", work, tmp_path / "command", timeout_s=30).wait()

    assert "No space left on device" in ending.said[-1]
    assert [] == list((tmp_path / "disk").iterdir())  # mounted for the fork alone


def test_every_moment_is_a_call_that_exists():
    for moment in MOMENTS.values():
        for call in moment.calls:
            module, _, path = call.partition(":")
            found: object = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
            assert callable(found), call


def test_a_signal_that_the_parent_ignores_reaches_a_command(tmp_path: Path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ending = disturb("interrupt", tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)

    assert "KeyboardInterrupt" in ending.said[-1]
