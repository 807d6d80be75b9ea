"""A slice of the fuzzing in every run of the tests, and the inputs that once did harm."""

from __future__ import annotations

import shutil
import zipfile
from contextlib import suppress
from datetime import date
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import worker
from tests.fuzz.drive import run
from tests.fuzz.guard import Guard
from tests.fuzz.mutations import mutate_safetensors
from tests.fuzz.seeds import lay_out, make_seeds

SLICE = 300
"""Inputs of a run of the tests, others each day; `make fuzz` takes 200,000."""
REGRESSIONS = sorted((Path(__file__).parent / "regressions").glob("*.zip"))


def test_hostile_checkpoints_neither_crash_nor_hang_the_doctor_nor_touch_anything():
    found = run(SLICE, 1, str(date.today()))

    assert not found.failures, f"seed {found.word}: {found.failures}"
    assert found.inputs == SLICE


@pytest.mark.parametrize("path", REGRESSIONS, ids=[path.stem for path in REGRESSIONS])
def test_what_once_did_harm_does_no_more(path, tmp_path, guard):
    folder, healthy = tmp_path / "input", tmp_path / "healthy"
    folder.mkdir()
    healthy.mkdir()
    lay_out(make_seeds()["model"], healthy)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            (folder / name).write_bytes(archive.read(name))
        subject = folder / archive.comment.decode()

    assert not worker.look(subject, Random(0), guard, healthy)


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    return Guard((tmp_path_factory.getbasetemp(),), worker.ALLOWED)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda room: (room.parent / "outside.txt").write_text("x"), "opens"),
        (lambda room: shutil.rmtree(room.parent / "other", ignore_errors=True), "rmtree"),
        (lambda room: __import__("socket").create_connection(("127.0.0.1", 9), 0.1), "socket"),
    ],
)
def test_the_guard_notices_harm(tmp_path, harm, said):
    """A guard that hears nothing would pass every input."""
    room = tmp_path / "room"
    room.mkdir()
    (tmp_path / "other").mkdir()
    guard = Guard((room,), worker.ALLOWED)
    guard.start()
    with suppress(OSError):
        harm(room)
    seen = guard.stop()

    assert any(said in one for one in seen)


def test_a_hang_and_a_crash_are_told(tmp_path, monkeypatch, guard):
    def hang(path, **options):
        while True:
            pass

    monkeypatch.setattr(worker, "LIMIT_S", 0.2)
    monkeypatch.setattr(worker, "diagnose", hang)
    assert worker.look(tmp_path, Random(1), guard, tmp_path)[0].startswith("hangs")
    monkeypatch.setattr(worker, "diagnose", lambda path, **options: [][1])
    assert worker.look(tmp_path, Random(1), guard, tmp_path)[0].startswith("raises\n")


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("html", "<img src=x onerror=alert(1)>"),
        ("html", "<a href='javascript:alert(1)'>x</a>"),
        ("json", '{"a": NaN}'),
        ("junit", "<a>\x1b</a>"),
        ("console", "\x1b[31mred"),
    ],
)
def test_a_report_that_passes_input_through_is_told(form, text):
    assert worker.CHECKS.get(form, worker.check_plain)(text)


def test_a_header_that_is_empty_can_be_damaged_too():
    """One of 200,000 inputs could once not be made, which counted as a failure of the doctor."""
    empty = (0).to_bytes(8, "little")
    made = {mutate_safetensors(empty, Random(seed)) for seed in range(400)}
    assert len(made) > 50
