"""Choose the layers of a merged model that go into few bits, and say so in its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING

from mudpuppy.adapters.merge_plan import FLOATS, Output, PackedEntry, Packing, Plan
from mudpuppy.adapters.repack import Repacking
from mudpuppy.errors import EngineError, ModelError, shown
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.places import choose_layers, find_targets
from mudpuppy.quant.registered import FourBitConfig


def plan_repacking(
    plan: Plan, config: Mapping[str, Any], packing: Packing
) -> tuple[Plan, Repacking]:
    """Return the plan with layers in few bits, and what the merge is to declare.

    These are the layers that the adapter saw in few bits; where it saw none, every linear layer of
    the decoder blocks, which are those that `FourBitConfig` takes of a 16-bit model.

    Args:
        plan: of the merge.
        config: config.json of the merged model.
        packing: format, block size and search.

    Raises:
        ModelError: the model cannot be built here, or no layer of it can be packed.
    """
    empty = _make_empty(config)
    try:
        wanted = {f"{name}.weight" for name in choose_layers(empty)}
    except EngineError as error:
        raise ModelError(str(error), hint="merge it in 16 bits: leave --quant out") from error
    were = any(_was_packed(output) for output in plan.outputs)
    fit = [one for one in plan.outputs if _fits(one) and (_was_packed(one) or not were)]
    targets = find_targets(empty, [output.name for output in fit])
    live = {name: at for name, (at, is_whole) in targets.items() if is_whole and at in wanted}
    if not live:
        raise ModelError(
            "no linear layer of the merged model could be written in few bits",
            hint="merge it in 16 bits: leave --quant out",
        )
    chosen = {one.name: one.source.shape[1] for one in fit if one.name in live}
    per_byte = FORMATS[packing.format].per_byte
    odd = [live[name] for name, columns in chosen.items() if columns % per_byte]
    outputs = (replace(o, packed_as=packing) if o.name in live else o for o in plan.outputs)
    return replace(plan, outputs=tuple(outputs)), Repacking(
        packing=packing,
        modules=tuple(live[name].removesuffix(".weight") for name in chosen),
        odd=tuple(name.removesuffix(".weight") for name in odd),
    )


def _was_packed(output: Output) -> bool:
    return output.packing is not None or isinstance(output.source, PackedEntry)


def _fits(output: Output) -> bool:
    is_matrix = len(output.source.shape) == 2 and output.name.endswith(".weight")
    return is_matrix and output.source.dtype in FLOATS


def _make_empty(config: Mapping[str, Any]) -> nn.Module:
    """Return the merged model on `meta`.

    Raises:
        ModelError: transformers alone cannot make it.
    """
    kind, names = config.get("model_type"), config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    make = getattr(transformers, name, None) if isinstance(name, str) else None
    if kind not in CONFIG_MAPPING or make is None or "auto_map" in config:
        raise ModelError(
            f"which layers of a {shown(kind)} model ({shown(name)}) can be in few bits is not "
            "known: transformers does not have it",
            hint="merge it in 16 bits: leave --quant out",
        )
    settings = CONFIG_MAPPING[kind].from_dict(dict(config))
    with torch.device("meta"):
        made: nn.Module = make(settings)
    return made


def declare(config: dict[str, Any], repacking: Repacking) -> dict[str, Any]:
    """Return config.json with the quantisation declared."""
    said = FourBitConfig(
        format=repacking.packing.format,
        block_size=repacking.packing.block_size,
        search=repacking.packing.search,
        modules=list(repacking.modules),
        odd=list(repacking.odd) or None,
    )
    return {**config, "quantization_config": said.to_dict()}
