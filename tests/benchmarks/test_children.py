"""Fresh processes: what they return, how long they took, how much they held."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.children import call, command, environment, peak_growth

MODULE = """
import time
ready = False
def prepare():
    global ready
    ready = True
    globals()["ballast"] = bytearray(50_000_000)
def work(count):
    held = bytearray(count * 1_000_000)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(0.05)
    return {"ready": ready, "count": count}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "measured_here.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "measured_here:work"


def test_a_function_in_a_fresh_process_gives_its_figures_time_and_peak(module: str):
    found = call(module, 30, prepare="prepare")

    assert (True, 30) == (found["ready"], found["count"])
    assert 29 <= found["peak_mb"] < 45, "what was prepared is no part of the peak"
    assert 0.05 <= found["wall_s"] < 5.0


def test_the_whole_process_takes_longer_than_the_function(module: str):
    assert call(module, 1, is_whole=True)["cpu_s"] > call(module, 1)["cpu_s"]


def test_a_command_that_fails_is_told_with_its_words():
    failing = [sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(4)"]

    with pytest.raises(RuntimeError, match=r"exit code 4\nwhy"):
        command(failing)
    assert 4 == command(failing, codes=(0, 4)).code


def test_a_child_has_this_tree_first_and_a_fixed_number_of_threads():
    code = "import json, os, sys; print(json.dumps([os.environ['OMP_NUM_THREADS'], sys.path[1]]))"
    found = json.loads(command([sys.executable, "-c", code], threads=3).output)

    assert ["3", environment(3)["PYTHONPATH"].split(":")[0]] == found


def test_the_peak_counts_what_was_given_back_again():
    def work() -> None:
        held = bytearray(40_000_000)
        held[::4096] = b"x" * len(held[::4096])

    assert 39_000_000 < peak_growth(work) < 60_000_000
