"""Train the adapter that a cell continues: same method, base and precision, two plain steps.

A scenario says `adapter: "@adapter"`. What stands for it is made in the cell's own folder before
its own training begins, so that a cell needs nothing that another one left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.axes import PRIOR_ADAPTER
from harness.phases import run_phase
from harness.trials.order import Order
from mudpuppy.config import SWITCHES, TrainingConfig
from mudpuppy.config_check import load_config
from mudpuppy.preflight import preflight

PRIOR = "prior"
"""Folder of that adapter inside the folder of the cell."""
PRIOR_STEPS = 2
"""Steps it is trained for: enough that it does something."""
_OF_THE_BASE = {"quant", "quant_block_size", "quant_search"}
"""Features that say what the adapter is trained on."""
_NOT_TAKEN_OVER = {field for field, _ in SWITCHES.values()} - _OF_THE_BASE
_NOT_TAKEN_OVER |= {"warmup_steps", "resume"}


def prior_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the run before: those of the cell, with features switched off.

    Those stay that say what the adapter is trained on.

    Args:
        config: every setting of the cell but `output`.
    """
    is_packed = config.get("method") == "qlora"  # no other method reads what says how
    dropped = _NOT_TAKEN_OVER if is_packed else _NOT_TAKEN_OVER | _OF_THE_BASE
    kept = {name: value for name, value in config.items() if name not in dropped}
    return {**kept, "max_steps": PRIOR_STEPS}


def with_prior_adapter(order: Order, config: TrainingConfig) -> TrainingConfig:
    """Return the configuration with a real adapter in place of `@adapter`, trained in a phase.

    Raises:
        UsageError: the engine refuses the settings of the run before.
        PhaseEnded: it failed, having said why.
    """
    if str(config.adapter) != PRIOR_ADAPTER:
        return config
    output = order.folder / PRIOR
    before = load_config({**prior_settings(order.config), "output": output})
    samples = preflight(before)
    order.import_engine()
    run_phase("training the adapter to continue", lambda: _train(order, before, samples))
    return config.model_copy(update={"adapter": output})


def _train(order: Order, config: TrainingConfig, samples: Any) -> None:
    order.train(config, samples=samples, say=lambda text: print(text, flush=True))
