"""Merge an adapter into a live model, or take it off, and leave no trace of it."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.lora.layer import Embedding as LoraEmbedding
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from mudpuppy.adapters.clean import LEFTOVERS, verify_clean
from mudpuppy.adapters.codes import BASE_CHANGED, NOT_FINITE
from mudpuppy.errors import EngineError
from mudpuppy.quant.linear4bit import Linear4bit, restore_linears
from mudpuppy.quant.registered import withdraw

MAX_MISSED = 1e-3
"""Share of an adapter's change that may be missing after its merge: fp32 rounds by far less."""


@torch.no_grad()
def merge_adapter(model: PeftModel, dtype: torch.dtype | None = None) -> nn.Module:
    """Fold the adapter into the base and return a clean, plain model.

    A 4-bit base is folded on its dequantised weights, because those are what the adapter saw;
    folding on the original 16-bit weights would be a different model (FM13). Each layer's sum is
    made in fp32 and rounded once; one layer at a time is held in fp32.

    Args:
        model: with one adapter; it must not be used afterwards.
        dtype: of the whole result; by default every tensor keeps its own.

    Raises:
        EngineError: MP-E07, traces are left. MP-E08, a weight is not W + scale * BA. MP-E09, the
            merge is not finite.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    for name, layer in layers.items():
        _merge_layer(name, layer, dtype)
    for part in model.modules():
        if isinstance(part, ModulesToSaveWrapper) and dtype is None:  # it trained in fp32
            part.to(next(part.original_module.parameters()).dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All adapters are already merged")
        merged: nn.Module = model.merge_and_unload()
    for part in merged.modules():
        if isinstance(part, Linear4bit) and dtype is not None:
            part.to(dtype)  # dequantised in fp32 and rounded once, as the merged layers are
    restore_linears(merged)
    withdraw(merged)
    _remove_traces(merged)
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_(False)
        wanted = parameter.dtype if dtype is None else dtype
        parameter.data = parameter.data.to(wanted).contiguous()
        _require_finite(name, parameter)
    verify_clean(merged)
    return merged


def unload_adapter(model: PeftModel) -> nn.Module:
    """Take the adapter off and return the clean base, bit for bit what it was before.

    Args:
        model: with an adapter that is not merged; it must not be used afterwards. `verify_clean`
            with the digests of the base proves the bits.

    Raises:
        EngineError: MP-E07, traces are left.
    """
    base: nn.Module = model.unload()
    _remove_traces(base)
    verify_clean(base)
    return base


def _merge_layer(name: str, layer: Any, dtype: torch.dtype | None) -> None:
    """Merge one adapted layer in fp32, check it, and round it to what the result is to be."""
    base = layer.get_base_layer()
    kept = _dtype_of(base)
    base.to(torch.float32)
    changes = _changes(layer)
    before = None if changes is None else layer.get_base_layer().weight.detach().clone()
    try:
        layer.merge(safe_merge=True)
    except ValueError as error:  # PEFT's safe merge found a NaN
        raise EngineError(
            f"the adapter cannot be merged at {name}: {error}", code=NOT_FINITE
        ) from error
    if changes is not None and before is not None:
        _require_merged(name, before, changes, base.weight)
    wanted = kept if dtype is None else dtype
    base.to(wanted)
    for parameter_name, parameter in base.named_parameters():
        _require_finite(f"{name}.{parameter_name}", parameter)


def _dtype_of(base: Any) -> torch.dtype:
    """Return the type of a layer's weights, which a packed layer hands out in its own."""
    weight = getattr(base, "weight", None)
    found = weight if weight is not None else next(iter(base.parameters()))
    dtype: torch.dtype = found.dtype
    return dtype


def _changes(layer: Any) -> Tensor | None:
    """Return scale * BA of a plain LoRA layer, computed here and not by PEFT; else None.

    A layer with a variant (DoRA) or with fused experts is merged by PEFT alone.
    """
    if not isinstance(layer, LoraLayer) or isinstance(layer, ParamWrapper):
        return None
    (adapter,) = layer.active_adapters or ("",)
    if adapter in layer.lora_variant:
        return None
    if isinstance(layer, LoraEmbedding) and adapter in layer.lora_embedding_A:
        product = layer.lora_embedding_B[adapter].float() @ layer.lora_embedding_A[adapter].float()
        return cast(Tensor, product.T * layer.scaling[adapter])
    if isinstance(layer, LoraLinear) and adapter in layer.lora_A:
        product = layer.lora_B[adapter].weight.float() @ layer.lora_A[adapter].weight.float()
        product = product.T if layer.fan_in_fan_out else product
        return cast(Tensor, product * layer.scaling[adapter])
    return None


def _require_merged(name: str, before: Tensor, changes: Tensor, after: Tensor) -> None:
    """Check that a weight moved by the adapter's change, and by nothing else.

    Raises:
        EngineError: it did not, as with a wrapper whose weight is a copy (FM20).
    """
    missed = float((after - before - changes).norm())
    # what fp32 may round away: half a unit in the last place of each sum
    rounding = torch.finfo(torch.float32).eps * float(before.norm() + changes.norm())
    if not missed <= MAX_MISSED * float(changes.norm()) + rounding:
        raise EngineError(
            f"the merge of {name} is wrong: it differs from W + scale * BA by {missed:.3g}, and "
            f"the whole change is {float(changes.norm()):.3g}",
            code=BASE_CHANGED,
        )


def _require_finite(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise EngineError(
            f"the merged tensor {name} is not finite in {tensor.dtype}",
            code=NOT_FINITE,
            hint="merge in a wider type: --precision bf16 or fp32",
        )


def _remove_traces(model: Any) -> None:
    """Delete what an adapter and its training leave on the model beside the layers."""
    for attribute in LEFTOVERS:
        if attribute in vars(model):
            delattr(model, attribute)
    if hasattr(model, "disable_input_require_grads"):
        model.disable_input_require_grads()  # gradient checkpointing with a frozen base
