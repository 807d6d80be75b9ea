"""A matrix of zeros where there should be weights.

What it does: a whole matrix, or the end of one, is exactly zero; or the weight of a norm is, in a
family that multiplies with it as it is (Gemma stores its norms less one, so zeros are right there).

Why it is bad: the layer is mute (FM60). Copies that were allocated but not filled, and shards that
were gathered wrongly, look like this; header, size and shape are all right.

Example: `model.layers.7.self_attn.o_proj.weight: all 16,777,216 values are 0` where the base has
none.

What to do: copy the file again and compare checksums with the source; if the source has the zeros
too, go back to an older checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.facts.adapters import is_factor
from harness.facts.checkpoint import Numbers
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

_PADDED = re.compile(r"embed|wte|wpe|lm_head|lora_|position|score|classifier|pad")
_BORN_ZERO = re.compile(r"\.mm_input_projection_weight$")
"""Matrices that transformers initialises with zeros, so that a random model has them (Gemma 3)."""
_QUANTISED = re.compile(r"(zeros|zero_point|scales?|g_idx|absmax|bias)$")
_ZERO_AT_START = re.compile(
    r"mm_input_projection_weight$|rel_pos_[hw]$|balancing_biases$"
    r"|(?:sampling_offsets|attention_weights)\.weight$"
)
"""Matrices that transformers begins with zeros: in a fresh model they say nothing."""
_SCORE = re.compile(r"(?:^|\.)(?:score|reward_head|v_head\.summary)\.weight$")
"""Heads of one row: zero, they give everything the same score."""
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_NORM = re.compile(r"norm\.weight$")
_PLAIN_NORMS = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "phi3")
"""Families whose norms multiply with their weight as it is stored."""
SHARE = 0.05
"""Share of a matrix that must be an unbroken run of zeros at its end to count: shorter runs are
found in padded matrices."""


@probe("MPD305", modes=["FM60", "FM63"], severity=Severity.CRITICAL)
def check(
    numbers: Mapping[str, Numbers],
    zeros_expected: Mapping[str, bool | None],
    config_or_empty: Mapping[str, Any],
) -> Finding | str:
    """Look for zero matrices and zero ends that the base, if known, does not have."""
    judged = [n for n in numbers.values() if n.tensor.dtype in _FLOATS and n.tensor.elements]
    if not judged:
        raise Missing("the folder holds no floating-point weights")
    plain = config_or_empty.get("model_type") in _PLAIN_NORMS
    bad = [
        one
        for one in judged
        if _is_dead(one, zeros_expected.get(one.tensor.name))
        or (plain and _is_dead_norm(one, zeros_expected.get(one.tensor.name)))
    ]
    if not bad:
        return f"none of {len(judged)} tensors is a block of zeros"
    bad.sort(key=lambda one: (not one.is_zero, one.tensor.name))
    first = bad[0]
    compared = any(zeros_expected.get(one.tensor.name) is False for one in bad)
    share = 1.0 if first.is_zero else first.trailing_zeros / first.tensor.elements
    return Finding(
        message=f"zeros in place of weights in {len(bad)} of {len(judged)} tensors"
        f": {first.tensor.name} "
        f"({share:.0%} of it)" + (", the base holds values there" if compared else ""),
        evidence=tuple(
            Evidence(
                what="zeros at the end" if not one.is_zero else "zeros",
                file=one.tensor.file,
                tensor=one.tensor.name,
                found=one.tensor.elements if one.is_zero else one.trailing_zeros,
                expected="values",
            )
            for one in bad
        ),
        cause="a copy or a gather that allocated the tensor and did not fill it",
        remedy="copy the file again and compare checksums, or go back to an older checkpoint",
        severity=Severity.CRITICAL,
    )


def _is_dead_norm(one: Numbers, base_is_zero: bool | None) -> bool:
    return one.is_zero and not base_is_zero and _NORM.search(one.tensor.name) is not None


def _is_dead(one: Numbers, base_is_zero: bool | None) -> bool:
    name, shape = one.tensor.name, one.tensor.shape
    if base_is_zero is None and _BORN_ZERO.search(name):
        return False
    if base_is_zero or one.nonfinite or _QUANTISED.search(name) or is_factor(name):
        # Factors of adapters start at zero by design; adapter-never-trained looks at them.
        return False
    if one.is_zero:
        if base_is_zero is None and _ZERO_AT_START.search(name):
            return False
        # Without a base, a zero vector may be a bias or a Gemma norm (stored as weight - 1).
        matters = len(shape) > 1 and min(shape) > 1
        return base_is_zero is False or matters or _SCORE.search(name) is not None
    if len(shape) < 2 or _PADDED.search(name):
        return False
    width = one.tensor.elements // shape[0]
    return one.trailing_zeros >= max(2 * width, SHARE * one.tensor.elements)
