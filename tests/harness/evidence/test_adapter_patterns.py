"""Patterns of an adapter's settings mean what they mean to PEFT, and none makes the doctor hang."""

from __future__ import annotations

import time

import pytest
from peft.utils.other import get_pattern_key

from harness.doctor import diagnose
from harness.evidence.adapters.adapter import check_patterns, scaling
from harness.findings import Status
from harness.registry import Missing
from tests.harness.checkpoints import copy, edit_json, save_adapter, save_base, save_merged

MODULES = [f"model.layers.{n}.self_attn.{kind}_proj" for n in (0, 1, 11) for kind in "qv"]
EVIL = r"(\w|\w\w|.)*!"


@pytest.fixture(scope="module")
def merge(tmp_path_factory):
    root = tmp_path_factory.mktemp("patterns")
    base = save_base(root / "base")
    adapter = save_adapter(root / "adapter", base)
    return base, adapter, save_merged(root / "merged", base, adapter)


@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("pattern", [EVIL, ".*.*.*.*.*.*!", "(", r"(a+)+", r"\1"])
def test_a_pattern_that_could_hang_leaves_the_merge_unchecked(merge, tmp_path, name, pattern):
    base, adapter, merged = merge
    folder = copy(adapter, tmp_path / "a")
    edit_json(folder / "adapter_config.json", **{name: {pattern: 4}})
    started = time.process_time()
    found = diagnose(merged, base=base, adapter=folder, select=["merge-wrongly-scaled"])
    assert time.process_time() - started < 5
    (result,) = found.probes
    assert (result.status, result.applies) == (Status.SKIPPED, True)
    assert f"{name} '{pattern}' is not followed" in result.reason


def test_many_slow_patterns_are_refused_together():
    patterns = {f"a.*b.*{n}": 4 for n in range(200)}
    with pytest.raises(Missing, match="steps"):
        check_patterns({"rank_pattern": patterns}, MODULES * 50)


@pytest.mark.parametrize(
    "keys",
    [
        ["q_proj"],
        ["layers.1.self_attn.v_proj", "v_proj"],
        [r"^model\.layers\.0.*q_proj"],
        [r".*\.(q|k)_proj"],
        [r"layers\.1[0-9]\..*"],
        ["Q_PROJ"],
        [r"model.layers.\d+.self_attn.v_proj", "q_proj"],
    ],
)
def test_patterns_mean_what_they_mean_to_peft(keys):
    settings = {"r": 8, "lora_alpha": 8, "alpha_pattern": dict.fromkeys(keys, 80)}
    check_patterns(settings, MODULES)
    for module in MODULES:
        is_hit = get_pattern_key(keys, module) in keys
        assert scaling(settings, module) == (10.0 if is_hit else 1.0)
