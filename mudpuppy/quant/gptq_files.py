"""Save a GPTQ model in the standard layout; `gptq_read` loads it."""

from __future__ import annotations

import json
import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mudpuppy.errors import EngineError, OutputError
from mudpuppy.files import fsync_folder, write_json_atomic
from mudpuppy.quant.blocks import find_decoder_layers, find_linears
from mudpuppy.quant.gptq_grid import GptqConfig
from mudpuppy.quant.gptq_linear import GptqLinear

CHECKPOINT_FORMAT = "gptq"
"""Version 1 of the layout: the stored zero is one less than the zero."""


MAX_SHARD = "2GB"
"""Largest file of weights; one is in memory while it is written."""


@torch.no_grad()
def save_gptq(
    model: Any,
    tokenizer: Any | None,
    folder: Path,
    config: GptqConfig,
    *,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Save a model that `quantise_model` quantised; the folder appears whole or not at all.

    The linear layers are stored packed, everything else as it is. The same description is put
    into `config.json` (`quantization_config`) and into `quantize_config.json`.

    Args:
        model: the quantised model.
        tokenizer: saved beside it where given.
        folder: must not exist, or be empty.
        config: what the model was quantised with.
        state: its tensors with the packed ones, where they are not in the model any more.

    Raises:
        OutputError: the folder holds something.
        EngineError: no layer is quantised, or one was changed afterwards.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not empty", hint="name another folder")
    state = _packed_state(model) if state is None else state
    description = describe(model, config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.parent / f".{folder.name}.tmp-{os.getpid()}"
    try:
        model.save_pretrained(staging, state_dict=state, max_shard_size=MAX_SHARD)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        settings = json.loads((staging / "config.json").read_text(encoding="utf-8"))
        settings["quantization_config"] = description
        if "use_cache" in settings:  # it is off while calibrating only
            settings["use_cache"] = True
        write_json_atomic(staging / "config.json", settings)
        write_json_atomic(staging / "quantize_config.json", description)
        _fsync_files(staging)
        staging.replace(folder)  # takes the place of an empty folder too
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fsync_files(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    fsync_folder(folder)


def _packed_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state with every quantised weight in its packed form."""
    state: dict[str, Tensor] = dict(model.state_dict())
    layers = {name: m for name, m in model.named_modules() if isinstance(m, GptqLinear)}
    if not layers:
        raise EngineError("no layer of this model is quantised; call quantise_model first")
    for name, layer in layers.items():
        layer.check_unchanged(name)
        del state[f"{name}.weight"]
        for part, tensor in layer.tensors._asdict().items():
            state[f"{name}.{part}"] = tensor
    return state


def describe(model: nn.Module, config: GptqConfig) -> dict[str, Any]:
    """Return the `quantization_config` of a quantised model."""
    stack = find_decoder_layers(model)
    dense = find_linears(stack.layers, stack.name)
    return {
        "quant_method": "gptq",
        "bits": config.bits,
        "group_size": config.group_size,
        # true says that the groups are not those of neighbouring inputs, and costs readers time
        "desc_act": config.moves_groups,
        "static_groups": config.act_order and config.static_groups,
        "sym": config.symmetric,
        "true_sequential": False,
        "damp_percent": config.damping,
        "lm_head": False,
        "checkpoint_format": CHECKPOINT_FORMAT,
        "pack_dtype": "int32",
        # readers expect every linear layer of the blocks packed; `-:` takes one out
        "dynamic": {f"-:^{re.escape(name)}$": {} for name in dense} or None,
        "meta": {
            "quantizer": [f"mudpuppy:{version('mudpuppy')}"],
            "act_order": config.act_order,
            "clip": config.clip,
        },
    }
