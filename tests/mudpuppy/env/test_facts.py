"""Facts survive their JSON form, and architectures are read as kernel and user write them."""

import json

import pytest

from mudpuppy.env.facts import Device, Facts, arch_of_override, version_of
from mudpuppy.errors import UsageError
from tests.mudpuppy.env.recorded import NAMES, machine


@pytest.mark.parametrize("name", NAMES)
def test_facts_survive_json(name: str):
    facts = machine(name)

    assert facts == Facts.from_json(json.loads(json.dumps(facts.to_json())))


def test_fields_of_a_newer_version_are_left_out():
    values = machine("mi300x").to_json()
    values["torch"]["devices"][0]["colour"] = "red"

    assert machine("mi300x") == Facts.from_json({**values, "smell": "of ozone"})


@pytest.mark.parametrize(
    "values", [3, [], "facts", None, {"torch": 3}, {"torch": {"devices": [1]}}, {"variables": 3}]
)
def test_what_is_no_facts_is_refused(values: object):
    with pytest.raises(UsageError, match="no facts"):
        Facts.from_json(values)


@pytest.mark.parametrize(
    ("value", "arch"),
    [("11.0.0", "gfx1100"), ("9.0.10", "gfx90a"), ("10.3.6", "gfx1036"), ("11", ""), ("", "")],
)
def test_an_override_names_an_architecture(value: str, arch: str):
    assert arch == arch_of_override(value)


def test_versions_are_numbers():
    assert (2, 13) == version_of("2.13.0+rocm7.2")
    assert (0, 0) == version_of("nightly")


@pytest.mark.parametrize(
    ("arch", "integrated", "rdna", "cdna"),
    [
        ("gfx1036", True, True, False),
        ("gfx1100", False, True, False),
        ("gfx1201", False, True, False),
        ("gfx942", False, False, True),
        ("gfx906", False, False, False),
        ("sm_90", False, False, False),
    ],
)
def test_architectures_have_their_kind(arch: str, integrated: bool, rdna: bool, cdna: bool):
    device = Device(index=0, name="one", arch=arch, total_bytes=1)

    assert (integrated, rdna, cdna) == (device.is_integrated, device.is_rdna, device.is_cdna)
