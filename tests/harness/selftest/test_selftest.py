"""The doctor is silent on every healthy checkpoint and names every damage, and nothing else."""

from __future__ import annotations

import pytest

from harness.registry import load_probes
from harness.selftest.examine import examine_damage, examine_healthy
from harness.selftest.registry import load_damages, load_healthy
from harness.selftest.run import is_slow
from harness.selftest.ward import Recovery


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    return Recovery(tmp_path_factory.mktemp("ward"))


ALSO = (
    *("trl-sft-lora", "trl-dpo-full", "engine-lora-merged", "engine-full", "chat-lora"),
    *("eos-flood", "knowledge-lost", "run-killed", "truncated-checkpoint"),
)
"""Those of the slow ones that are looked at here; `make selftest` takes all."""


def quick(names):
    return [name for name in names if name in ALSO or not is_slow(name)]


@pytest.mark.parametrize("name", quick(load_healthy()))
def test_a_healthy_checkpoint_raises_no_alarm(ward, name):
    found = examine_healthy(load_healthy()[name], ward)
    assert found.is_right, found


@pytest.mark.parametrize("name", quick(load_damages()))
def test_a_damage_is_named_and_nothing_else(ward, name):
    found = examine_damage(load_damages()[name], ward)
    assert found.is_right, found


@pytest.mark.parametrize("name", load_damages())
def test_a_damage_is_of_a_mode_that_its_probe_covers(name):
    one = load_damages()[name]
    probe = next(probe for probe in load_probes() if probe.name == one.probe)
    assert not one.mode or one.mode in probe.modes
