"""Folders of killed processes are removed by the next one; folders in use and of others are not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from harness.hub.rooms import PREFIX, YOUNG_S, hold_room, sweep_rooms
from tests.harness.hub.hub_server import Handler


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A folder for temporary files of our own."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def aged(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    then = time.time() - 2 * YOUNG_S
    os.utime(folder, (then, then))
    return folder


def test_what_a_killed_process_left_is_removed_by_the_next(room):
    left = aged(room / f"{PREFIX}left")
    with hold_room() as mine:
        assert list(room.iterdir()) == [mine]
    assert not left.exists()
    assert not list(room.iterdir())


def test_what_is_held_is_left_however_old_it_is(room):
    with hold_room() as held:
        aged(held)
        sweep_rooms()
        assert held.is_dir()


def test_what_is_young_or_a_link_or_of_another_name_is_left(room, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    aged(kept)
    (room / f"{PREFIX}link").symlink_to(kept)
    (room / f"{PREFIX}young").mkdir()
    aged(room / "another")
    before = sorted(room.iterdir())
    sweep_rooms()
    assert sorted(room.iterdir()) == before
    assert (kept / "file").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_command_that_is_ended_leaves_nothing(hub, tmp_path, number, code):
    place = tmp_path / "tmp"
    place.mkdir()

    def trick(handler: Handler, path: str) -> bool:
        time.sleep(3)
        return True

    hub.trick = trick
    command = subprocess.Popen(
        [sys.executable, "-m", "reports.commands.doctor", "hf://org/model"],
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell may have started the tests with the signal ignored, which is respected.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    ends = time.monotonic() + 30
    while not hub.asked and time.monotonic() < ends:
        time.sleep(0.02)
    assert list(place.iterdir())
    command.send_signal(number)
    said = command.communicate(timeout=20)[1]

    assert command.returncode == code, said
    assert "nothing was written" in said
    assert not list(place.iterdir())
