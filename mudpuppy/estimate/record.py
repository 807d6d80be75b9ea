"""Predict a run that is about to start, so that its record can be held against what it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mudpuppy import team
from mudpuppy.config import TrainingConfig
from mudpuppy.errors import UsageError
from mudpuppy.estimate.predict import Prediction, predict
from mudpuppy.methods.family import Row


def predict_run(
    model: Any,
    config: TrainingConfig,
    rows: Sequence[Row],
    device: torch.device,
    say: Callable[[str], None],
) -> dict[str, int]:
    """Return the predicted bytes of the training step on the device, by part.

    A model that cannot be laid out is told of and costs nothing else: the dictionary is empty then.

    Args:
        model: the model that is trained, with its adapter.
        config: the settings of the run.
        rows: samples as the model sees them; the longest one counts, not `max_length`.
        device: where the run computes.
        say: told what a GPU will have to hold.
    """
    longest = max((_width(row) for row in rows), default=config.max_length)
    known: dict[str, Any] = {}
    if not config.packing and config.tokens_per_batch is None:
        known["max_length"] = max(8, min(longest, config.max_length))
    adapters = getattr(model, "peft_config", None)
    if config.adapter is not None and adapters:
        own = next(iter(adapters.values()))
        known |= {"lora_r": own.r, "use_dora": own.use_dora, "use_rslora": own.use_rslora}
        if not isinstance(own.target_modules, str):
            known["lora_target_modules"] = tuple(sorted(own.target_modules))
    try:
        made = predict(
            model.config,
            config.model_copy(update=known),
            on_cpu=device.type == "cpu",
            devices=team.size(),
        )
    except UsageError as error:
        say(f"no prediction of the memory: {error.message}")
        return {}
    if device.type == "cuda":
        say(_tell(made, device))
    return made.by_part()


def _width(row: Row) -> int:
    """Return the tokens of a row; of the longer answer, where there are two."""
    return int(getattr(row, "width", len(row.input_ids)))


def _tell(made: Prediction, device: torch.device) -> str:
    total = int(torch.cuda.get_device_properties(device).total_memory)
    text = f"memory: about {made.device / 2**30:.1f} of {total / 2**30:.1f} GiB"
    return text if made.device <= total else f"{text}: it may not fit; see mud-puppy estimate"
