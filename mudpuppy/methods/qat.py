"""Quantisation-aware training: all weights learn as int8 ones, then an int8 model is written.

When rounding begins, how ranges are found and when they stand still is `mudpuppy.quant.ranges`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mudpuppy.config import TrainingConfig
from mudpuppy.loading import Loaded
from mudpuppy.methods import sft
from mudpuppy.methods.family import Exported, Family
from mudpuppy.quant.fake_quant import fake_quantised
from mudpuppy.quant.int8 import describe_weights, quantise_weights, save_int8
from mudpuppy.quant.ranges import RangeSettings
from mudpuppy.runtime import Runtime

FOLDER = "int8"
"""Folder of the int8 model inside the output, which itself holds the trained model."""


def around_fit(
    model: Any, config: TrainingConfig, runtime: Runtime
) -> AbstractContextManager[list[str]]:
    """Let the linear layers compute as int8 ones while the model trains and is evaluated."""
    del runtime
    return fake_quantised(model, range_settings(config))


def range_settings(config: TrainingConfig) -> RangeSettings:
    """Return how the ranges of the int8 grids are found."""
    return RangeSettings(
        per_tensor=config.qat_activations == "tensor",
        learned=config.qat_ranges == "learned",
        momentum=config.qat_momentum,
        warmup=config.qat_warmup,
        freeze=config.qat_freeze,
    )


def export(
    model: Any, loaded: Loaded, folder: Path, config: TrainingConfig, runtime: Runtime
) -> Exported:
    """Write the int8 model: levels of the fp32 masters, which training saw, and the rest rounded.

    Raises:
        EngineError: a weight is not finite: the run diverged.
    """
    weights = quantise_weights(model)
    description = {**describe_weights(model, weights), "ranges": config.qat_ranges}
    save_int8(model, loaded.original_tokenizer, folder / FOLDER, weights, runtime.dtype)
    return Exported(folder=FOLDER, quantisation=description)


FAMILY = Family(
    render=sft.render, make_trainer=sft.make_trainer, around_fit=around_fit, export=export
)
"""Quantisation-aware training."""
