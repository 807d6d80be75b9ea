"""Post-training quantisation with GPTQ, calibrated on the dataset's own samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mudpuppy.checkpoints import Identity, Resumable
from mudpuppy.config import TrainingConfig
from mudpuppy.loading import Loaded
from mudpuppy.methods import gptq_foreign
from mudpuppy.methods.family import Row
from mudpuppy.methods.gptq_blocks import CheckpointedBlocks, QuantiseResult
from mudpuppy.quant.gptq import GptqConfig, LayerError, quantise_model, save_gptq
from mudpuppy.quant.gptq_compare import Divergence, HeldOut
from mudpuppy.quant.hidden_store import HiddenStore
from mudpuppy.runtime import Runtime

HELD_OUT_SAMPLES = 16
"""Most samples on which the result is compared with the full model."""
GIB = 1 << 30


def settings_of(config: TrainingConfig) -> GptqConfig:
    """Return the grid that a configuration asks for."""
    return GptqConfig(
        bits=config.gptq_bits,
        group_size=config.gptq_group_size,
        symmetric=not config.gptq_asymmetric,
        act_order=config.gptq_act_order,
        static_groups=config.gptq_static_groups,
        damping=config.gptq_damping,
        clip=config.gptq_clip,
    )


def open_blocks(
    loaded: Loaded,
    config: TrainingConfig,
    runtime: Runtime,
    identity: Identity,
    *,
    resumed: Resumable | None,
    stays: bool,
) -> CheckpointedBlocks:
    """Return the blocks of a run.

    Args:
        loaded: the base.
        config: the settings.
        runtime: where it computes.
        identity: what the run is made of.
        resumed: the checkpoint that it goes on from.
        stays: whether the model must be whole before and after, for somebody who looks at it.

    Raises:
        ConfigError: another package is to quantise, and there is no CUDA device.
    """
    if config.gptq_backend == "gptqmodel":
        gptq_foreign.require_device(runtime)
    loaded.model.requires_grad_(False)
    blocks = CheckpointedBlocks(
        loaded.model,
        config.output,
        identity,
        runtime.device,
        lazy=loaded.lazy,
        resumed=resumed,
        stays=stays,
    )
    if stays:
        blocks.bring_all()
    return blocks


def quantise(
    loaded: Loaded,
    samples: Sequence[Row],
    config: TrainingConfig,
    runtime: Runtime,
    say: Callable[[str], None],
    blocks: CheckpointedBlocks,
    base: str,
) -> QuantiseResult:
    """Quantise the linear layers of the decoder blocks in place, block by block.

    Args:
        loaded: the base.
        samples: what there is to calibrate on.
        config: the settings.
        runtime: where it computes.
        say: told of every layer.
        blocks: the blocks of the base.
        base: path or hub id of the base, for a backend that loads it itself.

    Raises:
        EngineError: no layer could be quantised.
    """
    chosen, others = choose_samples(samples, config)
    say(f"calibrating on {len(chosen)} samples")
    if config.gptq_backend == "gptqmodel":
        return gptq_foreign.quantise(loaded, chosen, config, base)
    settings = settings_of(config)
    held_out = HeldOut([_inputs(row, runtime) for row in others])
    limit = int(config.gptq_activation_memory * GIB)
    with HiddenStore(config.output, limit) as store:
        seen = quantise_model(
            loaded.model,
            [_inputs(row, runtime) for row in chosen],
            settings,
            progress=say,
            held_out=held_out,
            blocks=blocks,
            store=store,
        )
        on_disk = store.bytes_on_disk
    say(_tell(held_out.divergence, len(chosen)))
    quantisation = {
        **_describe(settings, seen, held_out.divergence),
        "calibration_samples": len(chosen),
        "activations_on_disk_bytes": on_disk,
    }

    def save(folder: Path) -> None:
        state = blocks.state(loaded.model)
        save_gptq(loaded.model, loaded.original_tokenizer, folder, settings, state=state)

    return QuantiseResult(model=loaded.model, quantisation=quantisation, save=save)


def choose_samples(samples: Sequence[Row], config: TrainingConfig) -> tuple[list[Row], list[Row]]:
    """Return the samples that calibrate, and others to compare on, chosen by the seed."""
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(samples), generator=generator).tolist()
    count = config.calibration_samples
    chosen, others = order[:count], order[count : count + HELD_OUT_SAMPLES]
    return [samples[i] for i in chosen], [samples[i] for i in others]


def _inputs(sample: Row, runtime: Runtime) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([sample.input_ids], device=runtime.device)}


def _tell(divergence: Divergence | None, calibrated: int) -> str:
    if divergence is None and calibrated == 1:
        return "no sample is left to compare on: the only one calibrates; give more samples"
    if divergence is None:
        keeping = calibrated - min(HELD_OUT_SAMPLES, max(1, calibrated // 10))
        return (
            f"no sample is left to compare on: all {calibrated} calibrate; "
            f"--calibration-samples {keeping} keeps some back"
        )
    share = divergence.gptq / divergence.rtn if divergence.rtn else 1.0
    return (
        f"on {divergence.samples} other samples: KL from the full model {divergence.gptq:.3g} "
        f"nats a token, {share:.2f} of that of rounding to nearest ({divergence.rtn:.3g})"
    )


def _describe(
    settings: GptqConfig, seen: Sequence[LayerError], divergence: Divergence | None
) -> dict[str, Any]:
    """Return what the record says of the result."""
    return {
        "scheme": "gptq",
        "bits": settings.bits,
        "group_size": settings.group_size,
        "symmetric": settings.symmetric,
        "act_order": settings.act_order,
        "static_groups": settings.static_groups,
        "clip": settings.clip,
        "layers": [
            {
                "name": x.name,
                "gptq_error": x.gptq_error,
                "rtn_error": x.rtn_error,
                "damping": x.damping,
            }
            for x in seen
            if not x.skipped
        ],
        "skipped": {x.name: x.skipped for x in seen if x.skipped},
        "divergence": None if divergence is None else asdict(divergence),
    }
