"""Before the first cell: the embedded model is there, and the environment is known."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness import prepare
from harness.environment import count_cores, describe_environment
from harness.prepare import check_plant, prepare_model
from mudpuppy.errors import EngineError, UsageError
from tests.harness import fake_worker

(CELL,) = fake_worker.make_cells("pass")
TINY = replace(CELL, config={"model": "tiny"})


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUDPUPPY_CACHE", str(tmp_path))


def pretend(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(prepare, "BUILD_COMMAND", (sys.executable, "-c", script))


@pytest.mark.usefixtures("empty_cache")
def test_the_embedded_model_is_made_once_somebody_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    pretend(monkeypatch, f"open({str(tmp_path / 'made')!r}, 'w')")

    prepare_model([CELL], said.append)
    assert (said, (tmp_path / "made").exists()) == ([], False)

    prepare_model([CELL, TINY], said.append)
    assert said == ["making the embedded model (once, about a minute)"]
    assert (tmp_path / "made").exists()


@pytest.mark.usefixtures("empty_cache")
def test_a_model_that_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "import sys; print('no space left'); sys.exit(3)")

    with pytest.raises(EngineError, match="exit code 3\nno space left"):
        prepare_model([TINY], str)


def test_the_build_command_exists() -> None:
    from mudpuppy import cli

    assert prepare.BUILD_COMMAND[1:] == ("-m", "mudpuppy", "tiny", "build")
    assert "build" in cli.TINY_ACTIONS


def test_an_unknown_plant_is_refused_with_the_near_names() -> None:
    check_plant(None)
    check_plant("eos-masked")

    with pytest.raises(UsageError, match="did you mean 'eos-masked'"):
        check_plant("eos-mask")


def test_the_environment_is_described_in_plain_words() -> None:
    found = describe_environment()

    assert found["python"] == sys.version.split()[0]
    assert found["cores"] == count_cores() >= 1
    assert found["peft"]
