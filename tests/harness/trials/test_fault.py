"""The fault trial: one real kill and resume, and a fault that never comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import worker
from harness.matrix import load_cells
from harness.trials.fault import _check_options, perform
from harness.trials.order import CHECKPOINT, Order
from mudpuppy.errors import ConfigError, EngineError

CELLS = {cell.name: cell for cell in load_cells("faults")}


def order_of(name: str, folder: Path, **options: Any) -> Order:
    cell = CELLS[name]
    return Order(
        folder=folder,
        config=cell.config,
        options={**cell.options, **options},
        expect={},
        train=worker._train,
        import_engine=worker.import_engine,
    )


def test_a_killed_run_is_resumed_to_the_bits_of_its_twin(tmp_path: Path):
    seen = perform(order_of("kill-step", tmp_path))

    fault = seen.trial
    assert "measured" == seen.ending
    assert ("SIGKILL", 2, ()) == (
        fault["attempt"]["signal"],
        fault["resumed_step"],
        fault["differing"],
    )
    assert fault["compared"] > 20
    assert (tmp_path / CHECKPOINT / "merged" / "model.safetensors").is_file()


def test_a_fault_that_never_comes_is_no_passed_cell(tmp_path: Path):
    with pytest.raises(EngineError, match=r"did not happen: kill at step; .* with 0"):
        perform(order_of("kill-step", tmp_path, turn=99))


def test_the_options_of_every_cell_are_right_and_wrong_ones_are_named():
    for cell in CELLS.values():
        _check_options(cell.options)
    for wrong in ({"fault": "rain"}, {"at": "noon"}, {"damage": "x"}, {"more": 1}, {"turn": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            _check_options({**CELLS["kill-step"].options, **wrong})
