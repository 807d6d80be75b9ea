"""Weights too large for fp16.

What it does: fp16 ends at 65504. A larger weight of a bf16 or fp32 file becomes infinite when it is
cast to fp16.

Why it is bad: the model answers `!!!!` or NaN as soon as it is served in fp16 (FM12), and is fine
in bf16, so the fault seems to be the server's.

Example: `model.layers.2.mlp.down_proj.weight: 70,144` in a bf16 file whose config says float16.

What to do: serve in bf16 (`vllm serve PATH --dtype bfloat16`) and say so in config.json. A
weight this large is unusual: compare the tensor with the base model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.facts.checkpoint import Numbers
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import probe

LARGEST = 65504.0
"""Largest finite fp16 value."""
_WIDE = ("F32", "F64", "BF16")


@probe("MPD304", modes=["FM12"], severity=Severity.CRITICAL)
def check(
    numbers: Mapping[str, Numbers], config_or_empty: Mapping[str, Any], sample: str
) -> Finding | str:
    """Compare the largest value of every tensor with the range of fp16."""
    large = [n for n in numbers.values() if n.tensor.dtype in _WIDE and n.abs_max > LARGEST]
    if not large:
        read = "the values in the sample" if sample else "the values"
        return f"{read} of {len(numbers)} tensors fit fp16"
    large.sort(key=lambda one: (-one.abs_max, one.tensor.name))
    config = config_or_empty
    declared = any(dtype.removeprefix("torch.") in ("float16", "half") for dtype in _dtypes(config))
    return Finding(
        message=f"{agree(len(large), 'tensor holds', 'tensors hold')}"
        " values beyond the range of fp16, up to "
        f"{large[0].abs_max:.4g} in {large[0].tensor.name}"
        + ("; config.json says float16, so they become infinite" if declared else ""),
        evidence=tuple(
            Evidence(
                what="largest value",
                file=one.tensor.file,
                tensor=one.tensor.name,
                found=min(one.abs_max, 1e300),
                expected=f"at most {LARGEST:.0f}",
            )
            for one in large
        ),
        cause="the weights grew in training, or one was written by mistake",
        remedy='serve in bf16 and write "dtype": "bfloat16" into config.json',
        severity=Severity.CRITICAL if declared else Severity.NOTE,
    )


def _dtypes(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the types that config.json asks for: of the model, its language part, 4-bit layers."""
    text, bits = config.get("text_config"), config.get("quantization_config")
    for settings in (config, text if isinstance(text, dict) else {}):
        yield str(settings.get("dtype") or settings.get("torch_dtype") or "")
    yield str(bits.get("bnb_4bit_compute_dtype") or "") if isinstance(bits, dict) else ""
