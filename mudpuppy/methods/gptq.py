"""Post-training quantisation with GPTQ, calibrated on the dataset's own samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mudpuppy.config import TrainingConfig
from mudpuppy.errors import EngineError
from mudpuppy.methods.family import Row
from mudpuppy.quant.gptq import GptqConfig, quantise_model, save_gptq
from mudpuppy.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class QuantiseResult:
    """What GPTQ did."""

    settings: GptqConfig
    """The grid and its options."""
    quantisation: dict[str, Any]
    """Scheme and per-layer errors, for the run's record."""


def quantise(
    model: Any,
    samples: Sequence[Row],
    config: TrainingConfig,
    runtime: Runtime,
    say: Callable[[str], None],
) -> QuantiseResult:
    """Quantise the linear layers of the decoder blocks in place.

    Raises:
        EngineError: no layer could be quantised.
    """
    settings = GptqConfig(bits=config.gptq_bits, group_size=config.gptq_group_size)
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(samples), generator=generator).tolist()
    chosen = [samples[i] for i in order[: config.calibration_samples]]
    say(f"calibrating on {len(chosen)} samples")
    inputs = [
        {"input_ids": torch.tensor([sample.input_ids], device=runtime.device)} for sample in chosen
    ]
    seen = quantise_model(model, inputs, settings, progress=say)
    layers = [layer for layer in seen if not layer.skipped]
    if not layers:
        raise EngineError("no linear layer could be quantised")
    return QuantiseResult(
        settings=settings,
        quantisation={
            "scheme": "gptq",
            "bits": settings.bits,
            "group_size": settings.group_size,
            "calibration_samples": len(chosen),
            "layers": [
                {"name": x.name, "gptq_error": x.gptq_error, "rtn_error": x.rtn_error}
                for x in layers
            ],
            "skipped": {x.name: x.skipped for x in seen if x.skipped},
        },
    )


def save(model: Any, tokenizer: Any, folder: Path, result: QuantiseResult) -> None:
    """Save the quantised model in the GPTQ layout, with its tokenizer."""
    save_gptq(model, tokenizer, folder, result.settings)
