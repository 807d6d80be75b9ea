"""Probes of a lifecycle: each fires on its failure, and stays quiet on two good rounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.facts.lifecycle import Lifecycle, Stage
from harness.findings import Status
from harness.registry import Missing, load_probes, run_probe

PROBES = {one.code: one for one in load_probes() if "lifecycle" in one.needs}
ADAPTER = Stage(
    name="1 sft",
    step="sft",
    kind="adapter",
    bytes=69_032,
    tensors=28,
    adapters=1,
    peak_rss_bytes=400_000_000,
    verdict="healthy",
)
MERGED = replace(
    ADAPTER,
    name="1 sft merged",
    step="sft merged",
    kind="merged",
    bytes=822_632,
    tensors=21,
    adapters=0,
    k_low=1.0,
    k_high=1.0,
    judged=14,
)
AGAIN = (replace(ADAPTER, name="2 sft"), replace(MERGED, name="2 sft merged"))


class Source:
    """Evidence of a lifecycle alone."""

    def __init__(self, seen: Lifecycle) -> None:
        self.seen = seen

    def get(self, name: str) -> Any:
        if name != "lifecycle":
            raise Missing(name)
        return self.seen


def findings(*stages: Stage) -> list[str]:
    seen = Lifecycle(story="rounds", rounds=2, stages=stages)
    results = [run_probe(one, Source(seen)) for one in PROBES.values()]
    assert {Status.PASSED, Status.FAILED} >= {one.status for one in results}
    return [one.code for one in results if one.status is Status.FAILED]


def test_two_good_rounds_have_no_findings():
    assert ["MPD735", "MPD736", "MPD737", "MPD738", "MPD739"] == sorted(PROBES)
    assert [] == findings(ADAPTER, MERGED, *AGAIN)


def test_a_planted_stage_must_be_sick():
    sick = replace(ADAPTER, planted=True, verdict="sick", findings=("MPD201",))

    assert [] == findings(sick)
    assert ["MPD735"] == findings(replace(sick, verdict="healthy"))
    assert ["MPD735"] == findings(replace(sick, planted=False))
    assert ["MPD735"] == findings(replace(ADAPTER, verdict="unknown"))
    assert ["MPD735"] == findings()


@pytest.mark.parametrize(
    ("code", "which", "changes"),
    [
        ("MPD736", 1, {"k_low": 0.0}),
        ("MPD736", 1, {"k_high": 2.0}),
        ("MPD736", 1, {"k_low": None, "k_high": None}),
        ("MPD737", 0, {"adapters": 2}),
        ("MPD737", 0, {"adapters": 0}),
        ("MPD737", 1, {"adapters": 1}),
        ("MPD737", 1, {"foreign": 3}),
        ("MPD738", 0, {"bytes": 80_000}),
        ("MPD738", 1, {"tensors": 22}),
        ("MPD739", 0, {"peak_rss_bytes": 500_000_000}),
    ],
)
def test_each_failure_of_the_second_round_is_found_by_its_probe(code, which, changes):
    again = list(AGAIN)
    again[which] = replace(again[which], **changes)

    assert [code] == findings(ADAPTER, MERGED, *again)
