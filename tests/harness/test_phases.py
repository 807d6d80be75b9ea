"""Phases of a cell: fresh state each, and an ending that the leader learns."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from harness.phases import PhaseEnded, run_phase


def test_a_phase_changes_nothing_in_the_leader(tmp_path: Path):
    state = ["as it was"]

    def work() -> None:
        state.append("changed")
        (tmp_path / "seen").write_text(f"{len(state)}")

    run_phase("changing", work)

    assert ["as it was"] == state
    assert "2" == (tmp_path / "seen").read_text()


def test_an_exception_ends_the_phase_alone(capfd: pytest.CaptureFixture[str]):
    def work() -> None:
        raise RuntimeError("out of mud")

    with pytest.raises(PhaseEnded, match="digging: exit code 1") as found:
        run_phase("digging", work)

    assert 1 == found.value.code
    assert "out of mud" in capfd.readouterr().err


def test_a_signal_is_named():
    with pytest.raises(PhaseEnded, match="SIGKILL") as found:
        run_phase("killing", lambda: os.kill(os.getpid(), signal.SIGKILL))

    assert -signal.SIGKILL == found.value.code


def test_what_the_leader_registered_for_its_exit_does_not_run_in_a_phase(tmp_path: Path):
    def leave() -> None:
        raise SystemExit(0)

    with pytest.raises(PhaseEnded):  # leaving early is not coming to the end
        run_phase("leaving", leave)
