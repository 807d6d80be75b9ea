"""Where the layers of a checkpoint are in a model: names in files and in memory, which to pack."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from mudpuppy.errors import EngineError, ModelError, shown
from mudpuppy.quant.blocks import find_decoder_layers, find_linears
from mudpuppy.quant.checks import refuse
from mudpuppy.quant.codes import UNKNOWN_SCHEME
from mudpuppy.quant.packed_files import group_parts
from mudpuppy.safefile import TensorEntry, read_header


def find_linear(model: nn.Module, name: str) -> nn.Linear:
    """Return a linear layer of a model.

    Raises:
        QuantisedModelError: MP-Q01, there is none of that name.
    """
    try:
        found = model.get_submodule(name)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Linear):
        where = str(getattr(cast(Any, model).config, "_name_or_path", "") or type(model).__name__)
        raise refuse(UNKNOWN_SCHEME, where, f"the model has no linear layer {shown(name)}")
    return found


def choose_layers(model: nn.Module) -> list[str]:
    """Return the linear layers of the decoder blocks, in the model's order.

    Raises:
        EngineError: the model has no decoder blocks, or none of linear layers.
    """
    name, blocks = find_decoder_layers(model)
    found = list(find_linears(blocks, name, ("lm_head",)))
    if not found:
        raise EngineError(f"{type(model).__name__}: no linear layer could be quantised to 4 bits")
    return found


def group_files(model: nn.Module, files: list[Path]) -> dict[str, dict[str, TensorEntry]]:
    """Return the parts of every packed layer in the files, by the layer's name in the model.

    Raises:
        ModelError: a file is damaged.
    """
    tensors: dict[str, TensorEntry] = {}
    try:
        for file in files:
            tensors |= read_header(file)
    except (OSError, ValueError) as error:
        raise ModelError(f"the checkpoint cannot be read: {error}") from error
    groups = group_parts(tensors, ("qweight", "scales"))
    names = live_names(model, [f"{name}.weight" for name in groups])
    return {
        names[f"{name}.weight"].removesuffix(".weight"): parts for name, parts in groups.items()
    }


def find_names(model: nn.Module, names: list[str]) -> list[str]:
    """Return the layers of a list that names them as the model or as its files call them."""
    modules = {name for name, _ in model.named_modules()}
    foreign = [f"{name}.weight" for name in names if name not in modules]
    found = live_names(model, foreign) if foreign else {}
    return [found.get(f"{name}.weight", f"{name}.weight").removesuffix(".weight") for name in names]


def live_names(model: Any, names: list[str]) -> dict[str, str]:
    """Return what transformers calls some tensors of a file once they are in `model`."""
    return {name: target for name, (target, _) in find_targets(model, names).items()}


def find_targets(model: Any, names: list[str]) -> dict[str, tuple[str, bool]]:
    """Return where transformers puts some tensors of a file, and whether each fills its place.

    One that is only a part of its place, such as an expert of several, does not.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    state = model.state_dict()
    found: dict[str, tuple[str, bool]] = {}
    for name in names:
        target, pattern = rename_source_key(
            name, renamings, converters, model.base_model_prefix, state
        )
        found[name] = target, pattern is None
    return found
