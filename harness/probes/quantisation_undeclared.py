"""Quantised weights that nothing declares.

What it does: the files hold packed weights and scales (`qweight`, `scales`, `absmax`, uint8 or
int32 matrices), and neither config.json nor another file says which method made them.

Why it is bad: transformers does not know what to do with them, ignores them and fills the layers
with random values, without an exception (FM33).

Example: `model.layers.0.mlp.up_proj.qweight` (U8) and no `quantization_config`.

What to do: load it with the program that made it, and save it from there either dequantised or with
its `quantization_config`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.facts.checkpoint import Files, Tensor, Weights
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

_PARTS = re.compile(
    r"\.(qweight|qzeros|weight_packed|absmax|quant_map|quant_state\..*|weight_scale(_inv)?|SCB)$"
)
_PACKED = ("U8", "I8", "I32", "U32", "F8_E4M3", "F8_E5M2", "F4")
_KEYS = ("quantization_config", "quantization", "compression_config")
_DECLARATIONS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


@probe("MPD803", modes=["FM33"], severity=Severity.CRITICAL)
def check(
    weights: Weights,
    config_or_empty: Mapping[str, Any],
    files: Files,
    origin: Mapping[str, Any],
) -> Finding | str:
    """Look for packed tensors without a declaration."""
    packed = [tensor for tensor in weights.tensors.values() if _is_packed(tensor)]
    if not packed:
        return f"none of {len(weights.tensors)} tensors is quantised"
    if _is_declared(config_or_empty):
        return f"{len(packed)} quantised tensors are declared in config.json"
    if origin.get("quantisation") or any(name in files.names for name in _DECLARATIONS):
        return f"{len(packed)} quantised tensors are declared beside the model"
    return Finding(
        message=f"{len(packed)} tensors are quantised, such as {packed[0].name} "
        f"({packed[0].dtype}), and nothing says how",
        evidence=tuple(
            Evidence(what="quantised", file=t.file, tensor=t.name, found=t.dtype) for t in packed
        ),
        cause="the quantised layers were saved without their quantization_config",
        remedy="save it again from the program that made it, dequantised or with its config",
    )


def _is_declared(config: Mapping[str, Any]) -> bool:
    """Whether config.json, or the part of it about the language model, names a quantisation."""
    nested = config.get("text_config")
    settings = [config, nested] if isinstance(nested, dict) else [config]
    return any(one.get(key) for one in settings for key in _KEYS)


def _is_packed(tensor: Tensor) -> bool:
    if _PARTS.search(tensor.name):
        return True
    last = tensor.name.rpartition(".")[2]
    return tensor.dtype in _PACKED and len(tensor.shape) == 2 and "weight" in last
