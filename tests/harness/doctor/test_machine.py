"""The machine as a diagnosis: recorded machines, versions, requirements and wheels."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from harness.doctor.machine import diagnose_machine, find_unmet, find_wheels
from harness.evidence.training.versions import find_defects, is_within, read_table
from harness.findings import Severity, Status, Verdict
from harness.registry import load_probes
from mudpuppy.env.facts import Facts
from mudpuppy.env.traps import judge
from reports.commands import doctor
from reports.diagnosis_console import write_console
from tests.mudpuppy.env.recorded import NAMES, machine


def spoken(facts: Facts) -> dict[str, Severity]:
    diagnosis = diagnose_machine(facts)
    assert not [one for one in diagnosis.probes if one.status is Status.CRASHED]
    return {one.subject: one.severity for one in diagnosis.findings}


@pytest.mark.parametrize("name", NAMES)
def test_every_trap_of_a_recorded_machine_is_a_finding_of_its_severity(name):
    found = spoken(machine(name))
    severities = {"blocks": "critical", "warns": "medium", "note": "note"}
    expected = {f"{one.code} {one.name}": severities[one.severity] for one in judge(machine(name))}

    assert expected == {key: value for key, value in found.items() if key.startswith("MP-T")}


@pytest.mark.parametrize("name", ["cpu", "nvidia_h200"])
def test_a_machine_in_no_trap_is_healthy(name):
    assert diagnose_machine(machine(name)).verdict is Verdict.HEALTHY


@pytest.mark.parametrize(
    ("packages", "package", "name"),
    [
        ({"torch": "2.5.1+rocm6.2"}, "torch", "torch-load-runs-code"),
        ({"torch": "2.9.1+cu128"}, "torch", "torch-load-corrupts-memory"),
        ({"transformers": "4.47.1"}, "transformers", "accumulated-loss-summed"),
        ({"peft": "0.17.1", "transformers": "5.1.0"}, "peft", "peft-needs-older-transformers"),
        ({"jinja2": "3.1.4"}, "jinja2", "jinja-sandbox-escape"),
        ({"torch": "2.2.2", "numpy": "2.1.0"}, "torch", "numpy-2-with-old-torch"),
    ],
)
def test_a_version_with_a_defect_is_named(packages, package, name):
    found = find_defects(package, packages[package], "machine", packages)

    assert name in [one.name for one in found]


@pytest.mark.parametrize(
    "packages",
    [
        {"torch": "2.10.0", "transformers": "4.48.1", "peft": "0.21.2", "jinja2": "3.1.6"},
        {"torch": "2.13.0+rocm7.2", "transformers": "5.23.0", "numpy": "2.4.6"},
        {"torch": "no version", "peft": "", "transformers": "5.0.0.dev0"},
    ],
)
def test_a_version_without_an_entry_is_fine(packages):
    assert not [
        one
        for package, version in packages.items()
        for one in find_defects(package, version, "machine", packages)
    ]


def test_bitsandbytes_is_old_on_rocm_only():
    assert find_defects("bitsandbytes", "0.49.2", "machine", {"hip": True})
    assert not find_defects("bitsandbytes", "0.49.2", "machine", {"hip": False})
    assert not find_defects("bitsandbytes", "0.50.0", "machine", {"hip": True})


def test_the_table_is_whole():
    modes = {mode for one in load_probes() if one.name == "package-defective" for mode in one.modes}
    names = [entry["name"] for entry in read_table()]

    assert len(names) == len(set(names))
    for entry in read_table():
        assert entry["sources"]
        assert entry["what"]
        assert entry["do"]
        assert set(entry["at"]) <= {"machine", "checkpoint"}
        assert entry["severity"] in list(Severity)
        assert set(entry["modes"]) <= {*modes, "FM12"}
        is_within("1.0", entry["affected"])


def test_what_is_asked_for_and_not_installed_so_is_unmet():
    asked = ['pytest<1; extra == "old"', "pytest<1", "pytest>=7", "no-such-thing-here>=2", "!!"]

    first, second = find_unmet(asked)

    assert first.startswith("pytest<1, installed ")
    assert second == "no-such-thing-here>=2, not installed"


@pytest.mark.parametrize(
    ("packages", "speaks"),
    [
        ({"torch": "2.13.0+rocm7.2", "torchvision": "0.28.0+cu130"}, True),
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"}, False),
        ({"torch": "2.13.0", "torchvision": "0.28.0+cu130"}, False),
        ({"torch": "2.13.0+rocm7.2", "triton": "3.4", "pytorch-triton-rocm": "3.4"}, True),
        ({"torch": "2.13.0+rocm7.2", "pytorch-triton-rocm": "3.4"}, False),
    ],
)
def test_wheels_of_two_builds_are_told_apart(packages, speaks):
    probe = next(one for one in load_probes() if one.name == "wheels-mixed")

    assert (not isinstance(probe.check(find_wheels(packages)), str)) is speaks


def test_an_old_bitsandbytes_on_a_recorded_machine_is_high():
    facts = machine("rx7900xtx")
    found = spoken(replace(facts, packages={**facts.packages, "bitsandbytes": "0.48.1"}))

    assert found["bitsandbytes"] is Severity.HIGH


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr("mudpuppy.env.probe.collect", lambda: machine("r9700_gfx1201"))


def test_the_command_reports_the_machine_in_every_format(recorded, capsys):
    for form in ("console", "json", "markdown", "sarif", "junit", "html"):
        assert doctor.main(["--env", "--format", form]) in (0, 1)
        assert "MP-T" in capsys.readouterr().out


def test_no_package_hides_behind_another():
    facts = replace(machine("cpu"), packages={"transformers": "4.47.1", "jinja2": "3.1.2"})
    text = write_console(diagnose_machine(facts))

    assert "transformers 4.47.1:" in text
    assert "jinja2 3.1.2:" in text


def test_the_command_selects_probes_of_the_machine(recorded, capsys):
    doctor.main(["--env", "--format", "json", "--select", "MPD951"])
    told = json.loads(capsys.readouterr().out)

    assert {one["code"] for one in told["probes"]} == {"MPD951"}


@pytest.mark.parametrize("words", [["--env", "out"], []])
def test_a_path_or_env_is_wanted(words, capsys):
    assert doctor.main(words) == 2
    assert "--env" in capsys.readouterr().err
