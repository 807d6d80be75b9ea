"""config.json declares a quantised model, the weights are not quantised.

What it does: `quantization_config` is there, but all tensors are plain 16- or 32-bit floats.

Why it is bad: loaders quantise the model again, or look for `scales` that do not exist (FM32).
After a merge this silently rounds the trained change to 4 bits.

Example: a QLoRA merge that dequantised the weights and kept the config of the 4-bit base.

What to do: delete `quantization_config` from config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.facts.checkpoint import Weights
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

_PLAIN = {"F64", "F32", "F16", "BF16"}


@probe("MPD802", modes=["FM32"], severity=Severity.HIGH)
def check(config: Mapping[str, Any], weights: Weights) -> Finding | str:
    """Look for quantised tensors where the configuration declares some."""
    declared = config.get("quantization_config")
    if not isinstance(declared, dict) or not declared:
        raise NotApplicable("config.json declares no quantisation")
    if _keeps_plain(declared):
        return "what config.json declares keeps its weights in 16 bits, and rounds them in use"
    kinds = {tensor.dtype for tensor in weights.tensors.values()}
    method = str(declared.get("quant_method") or declared.get("scheme") or "quantised")[:40]
    if kinds - _PLAIN:
        return f"the weights hold {', '.join(sorted(kinds - _PLAIN))}, as {method} does"
    return Finding(
        message=f"config.json declares a {method} model, but all {len(weights.tensors)} tensors "
        f"are plain {'/'.join(sorted(kinds))}",
        evidence=(Evidence(what="quantization_config", file="config.json", found=method),),
        cause="the model was dequantised or merged, and the entry was not removed",
        remedy="delete quantization_config from config.json",
    )


def _keeps_plain(declared: Mapping[str, Any]) -> bool:
    """Whether the method stores plain weights: sparsity, online rounding, master weights."""
    return bool(
        declared.get("format") == "dense"
        or declared.get("quantization_mode") == "online"
        or declared.get("linear_class") == "autobitlinear"
        or declared.get("store_master_weights")
    )
