"""The self-test's report says all that was wrong, and the page names every probe and mode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.registry import load_probes
from harness.selftest.modes import load_modes
from harness.selftest.results import Accuracy, Examination
from mudpuppy.errors import UsageError
from reports.accuracy import summarise, write_console, write_json, write_markdown
from reports.commands.doctor import main
from reports.commands.doctor_selftest import run_selftest

PAGE = Path(__file__).parents[2] / "docs/doctor-accuracy.md"
HEALTHY = Examination(name="sound|one", checked=("adapter-never-trained",), verdict="healthy")
MISSED = Examination(
    name="zeroed",
    patient="sound|one",
    mode="FM08",
    probe="adapter-never-trained",
    missed=("adapter-never-trained",),
    alarms=("wrapper-prefix-left",),
    verdict="sick: 1 finding",
)
FAILED = Examination(name="unbuilt", crashed=("OSError: \x1b[31mfull",))


@pytest.fixture
def accuracy():
    return Accuracy(
        examinations=(HEALTHY, MISSED, FAILED),
        probes=(("MPD203", "adapter-never-trained"), ("MPD303", "wrapper-prefix-left")),
        others=(("MPD501", "leftover-peft-config"),),
        seconds=3.4,
    )


@pytest.mark.parametrize("write", [write_console, write_markdown])
def test_what_went_wrong_is_told(accuracy, write):
    text = write(accuracy)

    assert "missed by adapter-never-trained" in text.replace("\\", "")
    assert "false alarm of wrapper-prefix-left" in text.replace("\\", "")
    assert "could not be examined" in text
    assert "\x1b" not in text


def test_a_mode_without_reason_is_called_so(accuracy):
    assert "FM66 voice or accuracy collapse: NO REASON IS GIVEN" in write_console(accuracy)


def test_the_sentence_rounds_nothing_up(accuracy):
    many = [
        Examination(
            name=f"d{number}",
            patient="h",
            mode="FM08",
            probe="adapter-never-trained",
            verdict="sick",
            missed=() if number else ("adapter-never-trained",),
        )
        for number in range(5000)
    ]
    text = summarise(Accuracy(examinations=tuple(many), probes=accuracy.probes))

    assert "recall 99.9 %" in text
    assert "recall 100 %" in summarise(
        Accuracy(examinations=tuple(many[1:]), probes=accuracy.probes)
    )


def test_json_holds_every_examination(accuracy):
    value = json.loads(write_json(accuracy))

    assert ["sound|one", "zeroed", "unbuilt"] == [one["name"] for one in value["examinations"]]
    assert 1 == value["schema_version"]


def test_the_page_of_the_documentation_names_every_probe_and_mode():
    text = PAGE.read_text(encoding="utf-8")
    missing = [one.code for one in load_probes() if one.code not in text]
    missing += [mode.number for mode in load_modes() if mode.number not in text]

    assert not missing, "run: mudpuppy-doctor selftest --write"
    assert "no reason is given" not in text
    assert ", 0 false alarms." in text
    assert "What went wrong" not in text


def test_the_command_refuses_what_makes_no_sense():
    with pytest.raises(UsageError, match="leave --select out"):
        run_selftest(["--write", "--select", "FM08"])
    with pytest.raises(UsageError, match="1 or more"):
        run_selftest(["-j", "0"])


def test_the_command_lists_without_examining(capsys):
    assert 0 == main(["selftest", "--list", "--select", "lora-b-zero"])
    assert "lora-b-zero\n" == capsys.readouterr().out


def test_the_command_examines_a_mode(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MUDPUPPY_CACHE", str(tmp_path))
    output = tmp_path / "report.json"
    words = ["selftest", "--select", "lora-b-zero", "--format", "json", "--output", str(output)]

    assert 0 == main([*words, "-j", "1"])
    assert "1 of 1 damages were found" in capsys.readouterr().err
    value = json.loads(output.read_text())
    assert (1.0, 1, 0) == (value["recall"], value["damages"], value["false_alarms"])
