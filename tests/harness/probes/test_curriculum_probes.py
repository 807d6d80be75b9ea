"""Probes of a curriculum: each fires on its failure, and stays quiet on a good run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.facts.curriculum import CurriculumRun, CurriculumStage
from harness.findings import Status
from harness.registry import Missing, load_probes, run_probe

PROBES = {one.code: one for one in load_probes() if "curriculum" in one.needs}
SFT = CurriculumStage(topic="One / A / topic", number=1, kind="sft", kept=True)
DPO = replace(SFT, kind="dpo")
BAD = replace(
    DPO, kept=False, roots=("stacked-adapters",), codes=("MPD201",), message="keys pass two"
)
GOOD = CurriculumRun(
    topics=1,
    topics_begun=1,
    stages=(SFT, DPO),
    accuracy_before=0.0,
    accuracy_after=0.8,
    voice_before=0.2,
    voice_after=0.9,
)
PLANTED = replace(GOOD, planted="stacked-adapters", stages=(SFT, BAD), accuracy_after=None)


class Source:
    """Evidence of a curriculum alone."""

    def __init__(self, seen: CurriculumRun) -> None:
        self.seen = seen

    def get(self, name: str) -> Any:
        if name != "curriculum":
            raise Missing(name)
        return self.seen


def findings(seen: CurriculumRun) -> dict[str, str]:
    results = [run_probe(one, Source(seen)) for one in PROBES.values()]
    assert {Status.PASSED, Status.FAILED} >= {one.status for one in results}
    return {one.code: one.message for one in results if one.status is Status.FAILED}


def test_a_good_run_has_no_findings():
    assert ["MPD754", "MPD755", "MPD756"] == sorted(PROBES)
    assert {} == findings(GOOD)


def test_a_stage_that_was_rolled_back_is_told_with_its_cause():
    found = findings(replace(GOOD, stages=(SFT, BAD)))

    assert ["MPD754"] == list(found)
    assert "stacked-adapters" in found["MPD754"]
    assert "topic 1 (dpo)" in found["MPD754"]


def test_what_was_planted_and_named_at_once_is_well():
    assert ["MPD754"] == list(findings(PLANTED))


@pytest.mark.parametrize(
    "stages",
    [
        (SFT, DPO),
        (SFT, replace(BAD, roots=("voice-collapse", "stacked-adapters"))),
        (SFT, replace(BAD, number=2)),
        (SFT, replace(BAD, roots=())),
    ],
)
def test_a_root_that_is_missed_misnamed_or_named_late_is_a_finding(stages):
    assert "MPD755" in findings(replace(PLANTED, stages=stages))


@pytest.mark.parametrize(
    "worse",
    [
        {"accuracy_after": 0.0},
        {"voice_after": 0.2},
        {"accuracy_after": None},
        {"voice_before": None},
    ],
)
def test_a_run_without_gain_is_a_finding(worse: dict[str, Any]):
    assert ["MPD756"] == list(findings(replace(GOOD, **worse)))


def test_a_run_without_stages_is_a_finding():
    assert "MPD754" in findings(replace(GOOD, stages=()))
