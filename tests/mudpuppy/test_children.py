"""Forked children: what they return and raise comes back, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import harness.phases
from mudpuppy.children import THREADS_VARIABLE, ChildDied, be_child, run_child, use_threads
from mudpuppy.errors import ConfigError, EngineError, UsageError


def raising(error: Exception):
    def work():
        raise error

    return work


def test_what_is_returned_and_printed_comes_back(tmp_path: Path):
    def work():
        print("a word")
        os.write(2, b"another\n")
        return {"pid": os.getpid()}

    assert os.getpid() != run_child("it", work, tmp_path / "logs" / "it.log")["pid"]
    assert "a word" in (tmp_path / "logs" / "it.log").read_text()
    assert "another" in (tmp_path / "logs" / "it.log").read_text()


def test_a_persons_mistake_stays_one(tmp_path: Path):
    with pytest.raises(UsageError, match="two things") as found:
        run_child("it", raising(ConfigError(["two things"], hint="mend it")), tmp_path / "log")

    assert ("mend it", 2) == (found.value.hint, found.value.exit_code)


def test_an_error_of_the_engine_keeps_its_code_and_says_it_once(tmp_path: Path):
    with pytest.raises(EngineError) as found:
        run_child("it", raising(EngineError("stacked", code="MP-E01")), tmp_path / "log")

    assert ("MP-E01: stacked", "MP-E01") == (found.value.message, found.value.code)


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "memory runs out"),
        (lambda: os.kill(os.getpid(), signal.SIGHUP), "SIGHUP"),
        (raising(ZeroDivisionError("a bug")), "exit code 1.*ZeroDivisionError: a bug"),
        (lambda: float("nan"), "exit code 1.*JSON"),
    ],
)
def test_one_that_dies_is_told_with_its_last_words(tmp_path: Path, work, told: str):
    with pytest.raises(ChildDied, match=f"(?s){told}"):
        run_child("it", work, tmp_path / "log")


def test_a_child_dies_with_its_parent(tmp_path: Path):
    found = tmp_path / "pid"

    def sleep():
        found.write_text(str(os.getpid()))
        time.sleep(60)

    parent = os.fork()
    if parent == 0:
        run_child("sleeping", sleep, tmp_path / "log")
        os._exit(0)
    while not found.is_file() or not found.read_text():
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)

    ends = time.monotonic() + 5
    while _runs(int(found.read_text())) and time.monotonic() < ends:
        time.sleep(0.01)
    assert not _runs(int(found.read_text()))


def test_one_that_is_late_is_ended_and_told(tmp_path: Path):
    def sleep():
        print("still waiting", flush=True)
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(ChildDied, match=r"it was ended after 0\.2 s: still waiting"):
        run_child("it", sleep, tmp_path / "log", timeout_s=0.2)
    assert time.monotonic() - began < 5
    assert 3 == run_child("it", lambda: 3, tmp_path / "log", timeout_s=20)


@pytest.mark.parametrize("timeout_s", [None, 0.3])
def test_what_a_child_has_started_ends_with_it(tmp_path: Path, timeout_s: float | None):
    found = tmp_path / "pid"

    def leave_one_behind():
        with subprocess.Popen(["sleep", "60"]) as started:
            found.write_text(str(started.pid))
            if timeout_s is None:
                os._exit(3)

    with pytest.raises(ChildDied):
        run_child("it", leave_one_behind, tmp_path / "log", timeout_s=timeout_s)

    ends = time.monotonic() + 5
    while _runs(int(found.read_text())) and time.monotonic() < ends:
        time.sleep(0.01)
    assert not _runs(int(found.read_text()))


@pytest.mark.parametrize(("word", "wanted"), [("3", [3]), ("0", []), ("many", [])])
def test_threads_are_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, word: str, wanted: list[int]
):
    seen: list[int] = []
    monkeypatch.setenv(THREADS_VARIABLE, word)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(set_num_threads=seen.append))

    use_threads()

    assert wanted == seen
    # one of them for all: a phase of a cell takes no other share
    assert harness.phases.be_child is be_child


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
