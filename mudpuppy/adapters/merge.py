"""Merge an adapter into the weights it was trained against, and leave no trace of it."""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from mudpuppy.errors import EngineError
from mudpuppy.quant.int4 import restore_linears


@torch.no_grad()
def merge_adapter(model: PeftModel, dtype: torch.dtype) -> nn.Module:
    """Fold the adapter into the base and return a plain model in `dtype`.

    A 4-bit base is folded on its dequantised weights, because those are what the adapter saw;
    folding on the original 16-bit weights would be a different model (FM13). The sum is made in
    fp32 and rounded once.

    Raises:
        EngineError: the merge is not finite, or left traces of the adapter.
    """
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            part.to(torch.float32)
    try:
        merged: nn.Module = model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # PEFT's safe merge found a NaN
        raise EngineError(f"the adapter cannot be merged: {error}") from error
    restore_linears(merged)
    _remove_traces(merged)
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(dtype).contiguous()
        if not bool(torch.isfinite(parameter).all()):
            raise EngineError(
                f"the merged tensor {name} is not finite in {dtype}",
                hint="merge in a wider type: --precision bf16 or fp32",
            )
    return merged


def _remove_traces(model: nn.Module) -> None:
    """Delete what an unloaded adapter leaves on the model, and check that nothing is left.

    Raises:
        EngineError: an adapter layer or parameter survived.
    """
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if attribute in vars(model):
            delattr(model, attribute)
    layers = [name for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)]
    parameters = [name for name, _ in model.named_parameters() if "lora_" in name]
    if layers or parameters:
        raise EngineError(
            f"the merged model still holds adapter parts: {(layers + parameters)[:3]}"
        )
