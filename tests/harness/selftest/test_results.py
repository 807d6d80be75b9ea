"""The figures add up, and the exit code says what was wrong."""

from __future__ import annotations

import json

import pytest

from harness.selftest.modes import DEPTHS, load_modes
from harness.selftest.results import Accuracy, Examination

PROBES = (("MPD203", "adapter-never-trained"), ("MPD303", "wrapper-prefix-left"))


def healthy(name="h", **more):
    return Examination(name=name, checked=("adapter-never-trained",), verdict="healthy", **more)


def broken(name="d", mode="FM08", probe="adapter-never-trained", **more):
    return Examination(
        name=name, patient="h", mode=mode, probe=probe, checked=(probe,), verdict="sick", **more
    )


def accuracy(*found, whole=False):
    return Accuracy(examinations=found, probes=PROBES, whole=whole)


def test_what_is_right_has_full_recall_and_precision():
    made = accuracy(healthy(), broken())

    assert (1.0, 1.0, 0, 0) == (made.recall, made.precision, made.num_alarms, made.exit_code)
    first, second = made.by_probe()
    assert (1, 1, 1, 0) == (first.damages, first.found, first.quiet, first.alarms)
    assert (0, 0, 0, 0) == (second.damages, second.found, second.quiet, second.alarms)


def test_a_missed_damage_lowers_recall():
    made = accuracy(broken("a"), broken("b", missed=("adapter-never-trained",)))

    assert (0.5, 1.0, 1) == (made.recall, made.precision, made.exit_code)
    (mode,) = [one for one in made.by_mode() if one.damages]
    assert ("FM08", 2, 1) == (mode.mode.number, mode.damages, mode.found)


@pytest.mark.parametrize("where", [healthy, broken])
def test_a_false_alarm_lowers_precision_and_is_counted_for_its_probe(where):
    made = accuracy(broken("a"), where("b", alarms=("wrapper-prefix-left",)))

    assert 1 == made.exit_code
    assert made.precision < 1
    assert [0, 1] == [one.alarms for one in made.by_probe()]


def test_an_alarm_of_a_probe_is_no_silence_of_it():
    made = accuracy(healthy(alarms=("adapter-never-trained",)))

    assert (0, 1) == (made.by_probe()[0].quiet, made.by_probe()[0].alarms)


def test_what_could_not_be_built_counts_as_not_found_and_exits_with_3():
    failed = Examination(
        name="d", patient="h", mode="FM08", probe="adapter-never-trained", crashed=("OSError: x",)
    )
    made = accuracy(failed)

    assert (0.0, None, 3) == (made.recall, made.precision, made.exit_code)


def test_nothing_examined_is_not_right():
    assert 3 == accuracy().exit_code


def test_a_mode_without_damage_and_reason_is_wrong_only_where_all_was_examined():
    assert 0 == accuracy(broken()).exit_code
    assert 1 == accuracy(broken(), whole=True).exit_code


def test_everything_is_plain_json():
    value = json.loads(json.dumps(accuracy(healthy(), broken()).to_json(), allow_nan=False))

    assert 66 == len(value["modes"])
    assert "critical" == value["modes"][7]["mode"]["severity"]


def test_the_catalogue_is_whole():
    modes = load_modes()

    assert [f"FM{number:02}" for number in range(1, 67)] == [mode.number for mode in modes]
    assert {mode.depth for mode in modes} <= set(DEPTHS)
    assert all(not mode.reason or len(mode.reason) > 60 for mode in modes)
