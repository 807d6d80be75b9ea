"""Lifecycle stories: the failures of the adapter report really come out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import worker
from harness.doctor import diagnose
from harness.facts.behaviour import LiveModel
from harness.judge import judge_cell
from harness.matrix import load_cells
from harness.results import Outcome, WorkerExit
from harness.trials.lifecycle import check_options, perform
from harness.trials.order import CHECKPOINT, Order
from mudpuppy.errors import ConfigError

CELLS = {cell.name: cell for cell in load_cells("lifecycle")}
FINE = WorkerExit(exit_code=0, wall_s=1.0, peak_rss_bytes=1)


def tell(name: str, folder: Path, **options: Any) -> dict[str, Any]:
    """Tell one story in a folder, and return what was measured."""
    cell = CELLS[name]
    order = Order(
        folder=folder,
        config=cell.config,
        options={**cell.options, **options},
        expect={},
        train=worker._train,
        import_engine=worker.import_engine,
    )
    seen = perform(order)
    seen.write(folder)
    return seen.trial


def test_the_attribute_that_old_versions_left_is_seen_and_judged(tmp_path: Path):
    seen = tell("leftover", tmp_path)

    assert ("peft_config",) == tuple(LiveModel(**seen["live_model"]).leftovers)
    result = judge_cell(CELLS["leftover"], tmp_path, FINE)
    assert Outcome.PASSED is result.outcome, result.message
    assert ["MPD501"] == [found["code"] for found in result.findings]


def test_adapters_on_adapters_are_stacked_and_found(tmp_path: Path):
    (stage,) = tell("stacked", tmp_path)["stages"]

    assert (2, "sick", ("MPD201",)) == (stage["adapters"], stage["verdict"], stage["findings"])
    assert "MPD201" in {one.code for one in diagnose(tmp_path / CHECKPOINT).findings}


def test_one_adapter_more_each_round_makes_files_that_grow(tmp_path: Path):
    first, second = tell("growth", tmp_path, rounds=2)["stages"]

    assert ("healthy", 1, "sick", 2) == (
        first["verdict"],
        first["adapters"],
        second["verdict"],
        second["adapters"],
    )
    assert second["bytes"] > 1.5 * first["bytes"]


def test_one_round_merges_both_adapters_once(tmp_path: Path):
    stages = tell("rounds-1", tmp_path)["stages"]

    assert ["1 sft", "1 sft merged", "1 dpo", "1 dpo merged"] == [one["name"] for one in stages]
    assert {"healthy"} == {one["verdict"] for one in stages}
    merged = [one for one in stages if one["kind"] == "merged"]
    assert [0, 0] == [one["adapters"] for one in merged]
    assert all(abs(one[k] - 1) < 1e-4 for one in merged for k in ("k_low", "k_high"))
    assert all(one["judged"] for one in merged)


def test_the_options_of_every_cell_are_right_and_wrong_ones_are_named():
    for cell in CELLS.values():
        check_options(cell.options)
    for wrong in ({"story": "tale"}, {"rounds": 0}, {"more": 1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            check_options({"story": "rounds", **wrong})
