"""Save a GPTQ model in the standard layout, and load it without any other package."""

from __future__ import annotations

import json
import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig

from mudpuppy.errors import EngineError, ModelError, OutputError
from mudpuppy.files import fsync_folder, write_json_atomic
from mudpuppy.quant.blocks import find_decoder_layers, find_linears
from mudpuppy.quant.gptq_linear import GptqLinear
from mudpuppy.quant.gptq_matrix import GptqConfig
from mudpuppy.quant.gptq_pack import PACKED_BITS, GptqTensors, dequantise_gptq

CHECKPOINT_FORMAT = "gptq"
"""Version 1 of the layout: the stored zero is one less than the zero."""


@torch.no_grad()
def save_gptq(model: Any, tokenizer: Any | None, folder: Path, config: GptqConfig) -> None:
    """Save a model that `quantise_model` quantised; the folder appears whole or not at all.

    The linear layers are stored packed, everything else as it is. The same description is put
    into `config.json` (`quantization_config`) and into `quantize_config.json`.

    Args:
        model: the quantised model.
        tokenizer: saved beside it where given.
        folder: must not exist, or be empty.
        config: what the model was quantised with.

    Raises:
        OutputError: the folder holds something.
        EngineError: no layer is quantised, or one was changed afterwards.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not empty", hint="name another folder")
    state = _packed_state(model)
    description = describe(model, config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.parent / f".{folder.name}.tmp-{os.getpid()}"
    try:
        model.save_pretrained(staging, state_dict=state)
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
        # true would say that the groups are not those of neighbouring inputs; they always are
        "desc_act": False,
        "static_groups": config.act_order,
        "sym": config.symmetric,
        "true_sequential": False,
        "damp_percent": config.damping,
        "lm_head": False,
        "checkpoint_format": CHECKPOINT_FORMAT,
        "pack_dtype": "int32",
        # readers expect every linear layer of the blocks packed; `-:` takes one out
        "dynamic": {f"-:^{re.escape(name)}$": {} for name in dense} or None,
        "meta": {"quantizer": [f"mudpuppy:{version('mudpuppy')}"], "act_order": config.act_order},
    }


def load_gptq(folder: Path, dtype: torch.dtype) -> Any:
    """Load a GPTQ checkpoint as a plain model with dequantised weights.

    Args:
        folder: a checkpoint in version 1 of the layout, of this or another tool.
        dtype: dtype of the model. In the dtype that was quantised, the logits are bit-identical.

    Raises:
        ModelError: the folder is not such a checkpoint.
    """
    bits = _read_bits(folder)
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config  # transformers would look for a package that reads it
    state = _dense_state(folder, bits, dtype)
    kind = getattr(transformers, config.architectures[0])
    return kind.from_pretrained(None, config=config, state_dict=state, dtype=dtype)


def _read_bits(folder: Path) -> int:
    """Check the description of a checkpoint, and return the width of its levels."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json")
    found = json.loads(path.read_text(encoding="utf-8")).get("quantization_config") or {}
    method = found.get("quant_method")
    layout = found.get("checkpoint_format", CHECKPOINT_FORMAT)
    if method != "gptq" or layout != CHECKPOINT_FORMAT or found.get("bits") not in PACKED_BITS:
        raise ModelError(
            f"{path}: expected quant_method gptq, checkpoint_format {CHECKPOINT_FORMAT} and bits "
            f"in {PACKED_BITS}, found {method}, {layout} and {found.get('bits')}"
        )
    return int(found["bits"])


def _dense_state(folder: Path, bits: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of every shard, the packed ones dequantised."""
    state: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        state |= load_file(shard)
    for key in [key for key in state if key.endswith(".qweight")]:
        name = key.removesuffix(".qweight")
        missing = [part for part in GptqTensors._fields if f"{name}.{part}" not in state]
        if missing:
            raise ModelError(f"{folder}: {name} has no {', '.join(missing)}")
        tensors = GptqTensors(*(state.pop(f"{name}.{part}") for part in GptqTensors._fields))
        state[f"{name}.weight"] = dequantise_gptq(tensors, bits, dtype)
    return state
