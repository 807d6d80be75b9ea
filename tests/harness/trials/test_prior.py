"""The adapter that a cell continues is trained first, plainly, and by the cell's own method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.axes import settings_for
from harness.matrix import load_cells
from harness.trials.order import Order
from harness.trials.prior import PRIOR, prior_settings, with_prior_adapter
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import load_config
from mudpuppy.features import FEATURES, METHODS, PRECISIONS
from mudpuppy.rules import decide

CONTINUED = [
    (method, precision)
    for method in METHODS
    for precision in PRECISIONS
    if decide(method, precision, ["continue-adapter"]).accepted
]


def order(folder: Path, config: dict[str, Any]) -> Order:
    def train(before: TrainingConfig, *, samples: Any, say: Any) -> None:
        say(f"training on {len(samples)} samples")
        before.output.mkdir()
        (before.output / "asked.json").write_text(before.model_dump_json())

    return Order(
        folder=folder, config=config, options={}, expect={}, train=train, import_engine=lambda: None
    )


@pytest.fixture(scope="module")
def cells() -> dict[str, dict[str, Any]]:
    return {cell.name: dict(cell.config) for cell in load_cells("full")}


@pytest.mark.parametrize(("method", "precision"), CONTINUED)
def test_the_run_before_is_the_same_without_a_feature(cells: Any, method: str, precision: str):
    config = cells[f"{method}-{precision}-continue-adapter"]

    before = load_config({**prior_settings(config), "output": "prior"})

    assert (method, precision, frozenset()) == (before.method, before.precision, before.features)
    assert (config["model"], Path(config["dataset"])) == (before.model, before.dataset)
    assert (config["lora_r"], config["seed"]) == (before.lora_r, before.seed)


def test_features_of_the_cell_do_not_reach_the_run_before():
    config = {
        **settings_for("full", "fp32", FEATURES),
        "model": "tiny",
        "dataset": "d",
        "warmup_steps": 3,
        "max_steps": 9,
    }

    before = load_config({**prior_settings(config), "output": "prior"})

    assert (frozenset(), 0, 2) == (before.features, before.warmup_steps, before.max_steps)


def test_the_symbol_is_replaced_by_a_folder_that_was_trained(tmp_path: Path, cells: Any):
    cell = order(tmp_path, cells["dpo-bf16-continue-adapter"])
    config = load_config({**cell.config, "output": tmp_path / "checkpoint"})

    found = with_prior_adapter(cell, config)

    asked = json.loads((tmp_path / PRIOR / "asked.json").read_text())
    assert ("dpo", None) == (asked["method"], asked["adapter"])
    assert tmp_path / PRIOR == found.adapter
    assert config == found.model_copy(update={"adapter": config.adapter})


def test_an_adapter_that_is_named_is_left_alone(tmp_path: Path, cells: Any):
    cell = order(tmp_path, cells["lora-bf16"])
    config = load_config({**cell.config, "output": tmp_path / "out", "adapter": tmp_path})

    assert config is with_prior_adapter(cell, config)
    assert not (tmp_path / PRIOR).exists()
