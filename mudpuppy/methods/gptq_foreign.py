"""GPTQ by the package GPTQModel, on hosts with a CUDA device (`--gptq-backend gptqmodel`)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mudpuppy.config import TrainingConfig
from mudpuppy.errors import ConfigError
from mudpuppy.gptq_backend import PACKAGE
from mudpuppy.loading import Loaded
from mudpuppy.methods.family import Row
from mudpuppy.methods.gptq_blocks import QuantiseResult
from mudpuppy.runtime import Runtime

MSE_NORM = 2.0
"""Power of the error that GPTQModel's search for a span lowers, where ours is asked for."""


def require_device(runtime: Runtime) -> None:
    """Refuse a host without a CUDA device.

    Raises:
        ConfigError: the run is on another device.
    """
    if runtime.device.type != "cuda":
        raise ConfigError(
            [f"--gptq-backend: {PACKAGE} is for CUDA hosts, and the device is {runtime.device}"],
            hint="leave out --gptq-backend: the engine's own GPTQ runs on every device",
        )


def quantise(
    loaded: Loaded, samples: Sequence[Row], config: TrainingConfig, base: str
) -> QuantiseResult:
    """Let GPTQModel load, calibrate and quantise the base.

    Args:
        loaded: the base as the engine loaded it; its tokenizer is saved.
        samples: rows to calibrate on.
        config: the settings.
        base: path or hub id that GPTQModel loads.
    """
    package: Any = importlib.import_module(PACKAGE)
    settings = package.QuantizeConfig(
        bits=config.gptq_bits,
        group_size=config.gptq_group_size,
        sym=not config.gptq_asymmetric,
        desc_act=config.gptq_act_order and not config.gptq_static_groups,
        # its act-order with groups of neighbours
        act_group_aware=config.gptq_act_order and config.gptq_static_groups,
        damp_percent=config.gptq_damping,
        mse=MSE_NORM if config.gptq_clip == "mse" else 0.0,
    )
    model = package.GPTQModel.load(base, settings, trust_remote_code=config.trust_remote_code)
    rows = [{"input_ids": r.input_ids, "attention_mask": [1] * len(r.input_ids)} for r in samples]
    model.quantize(rows, batch_size=1)

    def save(folder: Path) -> None:
        model.save(str(folder))
        loaded.original_tokenizer.save_pretrained(folder)

    quantisation = {
        "scheme": "gptq",
        "backend": f"{PACKAGE} {metadata.version(PACKAGE)}",
        "bits": config.gptq_bits,
        "group_size": config.gptq_group_size,
        "symmetric": not config.gptq_asymmetric,
        "act_order": config.gptq_act_order,
        "static_groups": config.gptq_static_groups,
        "clip": config.gptq_clip,
        "calibration_samples": len(rows),
    }
    return QuantiseResult(model=model.model, quantisation=quantisation, save=save)
