"""The sizes in config.json are not those of the tensors.

What it does: for families whose settings mean exactly this, compares hidden_size,
intermediate_size, the numbers of heads, head_dim and num_hidden_layers with the shapes in the
headers, and reports sizes that are no positive whole numbers.

Why it is bad: transformers builds the model from config.json and then fails with a size mismatch;
layers beyond num_hidden_layers are dropped in silence (FM46).

Example: num_hidden_layers 2 over weights with 3 layers; num_key_value_heads 8 over 2.

What to do: put the config.json of the run back; it belongs to exactly these weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from typing import Any

from harness.facts.checkpoint import Tensor, Weights
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

FILE = "config.json"
_DERIVED_HEAD = ("llama", "mistral", "mixtral", "qwen2", "phi3")
"""Families in which head_dim, when absent, is hidden_size / num_attention_heads."""
FAMILIES = (*_DERIVED_HEAD, "qwen3", "gemma", "gemma2", "gemma3_text")
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""Sizes that must be numbers; absent, they are the defaults of the class and are not judged."""
OPTIONAL = ("num_key_value_heads", "head_dim", "vocab_size")
"""Sizes that may be null."""
_FLOATS = ("F64", "F32", "F16", "BF16")
_OTHER_PART = re.compile(r"visi|audio|image|encoder|mtp|draft|experts")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,9})\.self_attn\.")
_MODULE = re.compile(
    r"(?:^|\.)(embed_tokens|[qkvo]_proj|qkv_proj|gate_proj|up_proj|gate_up_proj|down_proj)"
    r"\.weight$"
)
LISTED_LAYERS = 10_000
"""Up to this many layers, missing-tensors names those that the files lack."""


@probe("MPD308", modes=["FM46"], severity=Severity.CRITICAL)
def check(weights: Weights, config: Mapping[str, Any], quantised_parts: Set[str]) -> Finding | str:
    """Compare every size that is known with every tensor that has it."""
    settings = _settings(config)
    if settings is None:
        raise NotApplicable("the shapes of this kind of model are not known here")
    evidence = _bad_values(settings)
    tensors = [
        tensor
        for name, tensor in weights.tensors.items()
        if not _OTHER_PART.search(name) and name not in quantised_parts
    ]
    wanted = _expected(settings)
    evidence += [piece for tensor in tensors for piece in _compare(tensor, wanted)]
    evidence += _compare_layers(tensors, settings.get("num_hidden_layers"))
    if not evidence:
        return f"the shapes of {len(tensors)} tensors follow from config.json"
    first = evidence[0]
    expected = "" if first.expected is None else f", expected {first.expected}"
    return Finding(
        message=f"config.json and weights disagree: {first.what}"
        f"{f' of {first.tensor}' if first.tensor else ''} is {first.found}{expected}",
        evidence=tuple(evidence),
        cause="config.json belongs to another model, or it was edited",
        remedy="put the config.json back that was saved with these weights, or that of the base "
        "model they were made from",
    )


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the settings of the language model, when its family is known."""
    nested = config.get("text_config")
    settings = nested if isinstance(nested, dict) else config
    return settings if settings.get("model_type") in FAMILIES else None


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _bad_values(settings: Mapping[str, Any]) -> list[Evidence]:
    bad = [key for key in REQUIRED if key in settings and not _is_size(settings[key])]
    bad += [k for k in OPTIONAL if settings.get(k) is not None and not _is_size(settings[k])]
    return [
        Evidence(
            what=key, file=FILE, found=repr(settings[key])[:40], expected="a positive whole number"
        )
        for key in bad
    ]


def _head_size(settings: Mapping[str, Any]) -> int | None:
    given = settings.get("head_dim")
    if given is not None:
        return given if _is_size(given) else None
    hidden, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    known = settings.get("model_type") in _DERIVED_HEAD and _is_size(hidden) and _is_size(heads)
    return hidden // heads if known and hidden and heads else None


def _expected(settings: Mapping[str, Any]) -> dict[str, tuple[tuple[int, str, int], ...]]:
    """Return, by module, the axes of its weight with the setting and the size they must have."""
    hidden, inner = settings.get("hidden_size"), settings.get("intermediate_size")
    heads, groups = settings.get("num_attention_heads"), settings.get("num_key_value_heads")
    head = _head_size(settings)
    query, key = _times(heads, head), _times(groups, head)
    both = query + 2 * key if query and key else None
    stream = "hidden_size"
    q_name, k_name = "num_attention_heads * head_dim", "num_key_value_heads * head_dim"
    axes = [
        ("embed_tokens", 1, stream, hidden),
        *((f"{name}_proj", 1, stream, hidden) for name in ("q", "k", "v", "qkv")),
        ("q_proj", 0, q_name, query),
        ("k_proj", 0, k_name, key),
        ("v_proj", 0, k_name, key),
        ("qkv_proj", 0, "heads * head_dim", both),
        ("o_proj", 0, stream, hidden),
        ("o_proj", 1, q_name, query),
        *((f"{name}_proj", 1, stream, hidden) for name in ("gate", "up", "gate_up")),
        ("gate_proj", 0, "intermediate_size", inner),
        ("up_proj", 0, "intermediate_size", inner),
        ("gate_up_proj", 0, "2 * intermediate_size", _times(2, inner)),
        ("down_proj", 0, stream, hidden),
        ("down_proj", 1, "intermediate_size", inner),
    ]
    made: dict[str, tuple[tuple[int, str, int], ...]] = {}
    for module, axis, name, size in axes:
        if size is not None and _is_size(size):
            made[module] = (*made.get(module, ()), (axis, name, size))
    return made


def _times(left: Any, right: Any) -> int | None:
    return left * right if _is_size(left) and _is_size(right) else None


def _compare(
    tensor: Tensor, wanted: Mapping[str, tuple[tuple[int, str, int], ...]]
) -> Iterator[Evidence]:
    match = _MODULE.search(tensor.name)
    if match is None or len(tensor.shape) != 2 or tensor.dtype not in _FLOATS:
        return  # quantised matrices are packed, biases are vectors
    for axis, name, size in wanted.get(match[1], ()):
        if tensor.shape[axis] != size:
            yield Evidence(
                what="rows" if axis == 0 else "columns",
                file=tensor.file,
                tensor=tensor.name,
                found=tensor.shape[axis],
                expected=f"{size} ({name})",
            )


def _compare_layers(tensors: list[Tensor], count: Any) -> list[Evidence]:
    numbers = {int(match[1]) for tensor in tensors if (match := _LAYER.search(tensor.name))}
    if not numbers or not _is_size(count):
        return []
    stored = max(numbers) + 1
    if stored > count or (count > LISTED_LAYERS and stored < count):
        what = "layers in the files"
        return [Evidence(what=what, found=stored, expected=f"{count} (num_hidden_layers)")]
    return []
