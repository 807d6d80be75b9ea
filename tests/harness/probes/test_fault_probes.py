"""Probes of a disturbed run: each fires on its failure, and stays quiet on a good ending."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.facts.faults import Ending, Fault
from harness.findings import Status
from harness.registry import Missing, load_probes, run_probe

PROBES = {one.code: one for one in load_probes() if "fault" in one.needs}
KILLED = Ending(name="attempt", exit_code=None, signal="SIGKILL", seconds=1.0)
DONE = Ending(name="recovery", exit_code=0, seconds=1.0)
REFUSED = Ending(
    name="bystander",
    exit_code=2,
    seconds=1.0,
    said=("mud-puppy: error: the output folder o is in use by another run",),
    complaints=1,
)
GOOD = Fault(
    fault="kill",
    moment="step",
    then="resume",
    wanted_ending="SIGKILL",
    wanted_words="",
    wanted_step=2,
    attempt=KILLED,
    recovery=DONE,
    resumed_step=2,
    promised=("adapter_model.safetensors",),
    compared=9,
)
FULL = replace(
    GOOD,
    fault="full-disk",
    wanted_ending="3",
    wanted_words="No space",
    attempt=Ending(
        name="attempt",
        exit_code=3,
        seconds=1.0,
        said=("mud-puppy: error: No space left",),
        complaints=1,
    ),
)
HUNG = replace(
    GOOD,
    fault="hang",
    hung=True,
    wanted_ending="SIGTERM",
    attempt=replace(KILLED, signal="SIGTERM", timed_out=True, stack=True, children_left=1),
)


class Source:
    """Evidence of a fault alone."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def get(self, name: str) -> Any:
        if name != "fault":
            raise Missing(name)
        return self.fault


def findings(fault: Fault) -> list[str]:
    results = [run_probe(one, Source(fault)) for one in PROBES.values()]
    assert {Status.PASSED, Status.FAILED} >= {one.status for one in results}
    return [one.code for one in results if one.status is Status.FAILED]


def changed(fault: Fault, **changes: Any) -> Fault:
    return replace(fault, attempt=replace(fault.attempt, **changes))


@pytest.mark.parametrize("fault", [GOOD, FULL, HUNG, replace(GOOD, bystander=REFUSED)])
def test_a_good_ending_has_no_findings(fault: Fault):
    assert ["MPD730", "MPD731", "MPD732", "MPD733", "MPD734"] == sorted(PROBES)
    assert [] == findings(fault)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("MPD730", replace(GOOD, lost=("adapter_model.safetensors",))),
        ("MPD730", replace(GOOD, resumed_step=1)),
        ("MPD730", replace(GOOD, resumed_step=None)),
        ("MPD731", replace(GOOD, differing=("steps.jsonl: line 3",))),
        ("MPD731", replace(GOOD, leftovers=(".saving-7",))),
        ("MPD731", replace(GOOD, compared=0)),
        ("MPD732", changed(GOOD, signal="SIGTERM")),
        ("MPD732", changed(GOOD, signal=None, exit_code=0)),
        ("MPD732", changed(FULL, exit_code=1)),
        ("MPD732", changed(FULL, traceback=True)),
        ("MPD732", changed(FULL, complaints=2)),
        ("MPD732", changed(FULL, said=("mud-puppy: error: something",))),
        ("MPD732", replace(GOOD, bystander=replace(REFUSED, exit_code=0))),
        ("MPD732", replace(GOOD, bystander=replace(REFUSED, said=("no",)))),
        ("MPD733", replace(GOOD, half_written=("merged: config.json",))),
        ("MPD734", replace(GOOD, survivors=(7,))),
        ("MPD734", changed(GOOD, children_left=1)),
        ("MPD734", changed(HUNG, stack=False)),
        ("MPD734", changed(HUNG, children_left=0)),
    ],
)
def test_each_failure_is_found_by_its_probe(code: str, fault: Fault):
    assert [code] == findings(fault)


def test_a_recovery_that_fails_is_lost_work_and_a_refusal_that_was_wanted_is_not():
    refused = replace(REFUSED, name="recovery")

    assert {"MPD730", "MPD732"} <= set(findings(replace(GOOD, recovery=refused)))
    wanted = replace(GOOD, recovery=refused, then="refusal", wanted_step=None, resumed_step=None)
    assert [] == findings(wanted)
    assert ["MPD732"] == findings(replace(wanted, recovery=DONE))
