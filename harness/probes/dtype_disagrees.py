"""config.json declares float16 for a family that needs more range than that.

What it does: compares `dtype` (`torch_dtype` before transformers 5) with the types in the headers.
Only float16 over bfloat16 or float32 is reported, and only for families whose activations are known
to leave its range (Gemma, T5, Qwen2).

Why it is bad: transformers loads in the declared type, so values are cast on the way. bfloat16
reaches 3e38, float16 ends at 65,504: activations of models that were trained in bfloat16 overflow,
and logits become NaN or one token for ever (FM12). Training float16 weights stops with "Attempting
to unscale FP16 gradients" (FM42).

Example: `torch_dtype: float16` was kept from the base, and DeepSpeed gathered bfloat16.

What to do: write the type of the tensors into config.json: `"dtype": "bfloat16"`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from harness.facts.checkpoint import Weights
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

FILE = "config.json"
OVERFLOWING = ("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "t5", "mt5", "umt5", "qwen2")
"""Families whose activations are known to leave the range of float16."""
_WIDER = {"BF16": "bfloat16", "F32": "float32"}


@probe("MPD825", modes=["FM12", "FM42"], severity=Severity.MEDIUM)
def check(weights: Weights, config: Mapping[str, Any]) -> Finding | str:
    """Compare the declared type with that of most values."""
    declared = config.get("dtype", config.get("torch_dtype"))
    if config.get("quantization_config"):
        raise NotApplicable("a quantised model stores other types than it computes in")
    if declared != "float16":
        return f"the declared type is {str(declared)[:20]}, which loses no range"
    held: Counter[str] = Counter()
    for tensor in weights.tensors.values():
        held[tensor.dtype] += tensor.elements
    most = held.most_common(1)[0][0] if held else ""
    if most not in _WIDER:
        return f"float16 is declared, and {most or 'nothing'} is stored"
    family = str(config.get("model_type", ""))[:40]
    if family not in OVERFLOWING:
        return f"float16 is declared over {_WIDER[most]}, for a family that is not known to need it"
    return Finding(
        message=f"config.json declares float16, and the files hold {_WIDER[most]}: loading casts "
        "it down",
        evidence=(Evidence(what="dtype", file=FILE, found="float16", expected=_WIDER[most]),),
        cause="the declaration was kept from the base, or edited",
        remedy=f'write "dtype": "{_WIDER[most]}" into {FILE}, and "torch_dtype" for older readers',
    )
