"""What most families say of their sizes, and how positions are rotated: stretched, and in windows.

What llama.cpp computes otherwise than transformers is refused, or told where many models have it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mudpuppy.errors import shown
from mudpuppy.export.gguf.architectures.family import (
    Entry,
    Settings,
    experts_of,
    head_size,
    kv_heads,
    number,
    refuse,
    whole,
)


def main_rotation(settings: Settings) -> Mapping[str, Any]:
    """Return how positions are rotated where attention reaches everything."""
    rope: Mapping[str, Any] = settings["rope_parameters"]
    main: Mapping[str, Any] = rope.get("full_attention", rope)
    return main


def describe_common(settings: Settings) -> Iterator[Entry]:
    """Yield the metadata that most families have."""
    yield "block_count", whole(settings, "num_hidden_layers")
    yield "context_length", whole(settings, "max_position_embeddings")
    yield "embedding_length", whole(settings, "hidden_size")
    yield "feed_forward_length", whole(settings, "intermediate_size")
    yield "head_count", whole(settings, "num_attention_heads")
    yield "head_count_kv", kv_heads(settings)
    yield from describe_scaling(settings, main_rotation(settings))
    yield "rope_freq_base", number(main_rotation(settings), "rope_theta")
    if "sliding_attention" in (rope := settings["rope_parameters"]):
        yield "rope_freq_base_swa", number(rope["sliding_attention"], "rope_theta")
    yield "layer_norm_rms_eps", number(settings, "rms_norm_eps")
    if experts := experts_of(settings):
        yield "expert_count", experts
    if settings.get("num_experts_per_tok") is not None:
        yield "expert_used_count", whole(settings, "num_experts_per_tok")
    if settings.get("head_dim") is not None:
        yield "key_length", head_size(settings)
        yield "value_length", head_size(settings)


def describe_scaling(settings: Settings, rope: Mapping[str, Any]) -> Iterator[Entry]:
    """Yield how the rotation is stretched; what has tensors for it is written elsewhere."""
    kind = rope.get("rope_type")
    if kind == "linear":
        yield "rope_scaling_type", kind
        yield "rope_scaling_factor", number(rope, "factor")
    elif kind == "yarn":
        yield "rope_scaling_type", kind
        yield "rope_scaling_factor", yarn_factor(settings, rope)
        yield "rope_scaling_orig_ctx_len", whole(rope, "original_max_position_embeddings")
        if not math.isclose(more := yarn_attention(settings, rope), 1.0, rel_tol=1e-6):
            yield "rope_scaling_attn_factors", more
        for key in ("beta_fast", "beta_slow"):
            if rope.get(key):
                yield f"rope_scaling_yarn_{key}", number(rope, key)


def yarn_factor(settings: Settings, rope: Mapping[str, Any]) -> float:
    """Return what yarn stretches by; null stands for the context by the trained one.

    Raises:
        ExportRefused: it is no number of at least 1.
    """
    if "factor" in rope and rope["factor"] is None:
        trained = whole(rope, "original_max_position_embeddings")
        factor = whole(settings, "max_position_embeddings") / trained
    else:
        factor = number(rope, "factor")
    if factor < 1:
        raise refuse(f"config.json: factor is {factor}, and yarn only stretches")
    return factor


def yarn_attention(settings: Settings, rope: Mapping[str, Any]) -> float:
    """Return what attention is scaled by beyond what llama.cpp computes from the factor.

    That is 0.1 ln(factor) + 1. transformers' `_compute_yarn_parameters` takes `attention_factor`
    before it, or the quotient of two such by `mscale` and `mscale_all_dim`. llama.cpp has a key
    for the second alone, and multiplies both by `rope.scaling.attn_factor`.

    Raises:
        ExportRefused: one of them is no positive number.
    """
    stretch = math.log(yarn_factor(settings, rope))
    taken = 0.1 * stretch + 1
    if rope.get("attention_factor") is not None:
        return number(rope, "attention_factor") / taken
    if not (rope.get("mscale") and rope.get("mscale_all_dim")):
        return 1.0
    above, below = (0.1 * number(rope, key) * stretch + 1 for key in ("mscale", "mscale_all_dim"))
    return above / below / taken


def check_rotation(settings: Settings, *, also: tuple[str, ...] = ()) -> Iterator[str]:
    """Refuse a rotation that the file cannot say.

    Args:
        settings: of the model.
        also: types that this family has tensors for.

    Raises:
        ExportRefused: there is one.
    """
    rope = settings["rope_parameters"]
    near = rope.get("sliding_attention", {})
    for part in (rope.get("full_attention", rope), near):
        kind = str(part.get("rope_type") or "default")
        if kind == "dynamic":
            yield (
                "rope_type dynamic has no word in GGUF: up to "
                f"{settings.get('max_position_embeddings')} tokens nothing changes, beyond it does"
            )
        elif kind not in ("default", "linear", "yarn", *also):
            raise refuse(
                f"config.json: rope_type {shown(kind)} is not written for this architecture",
                "default, linear and yarn are, llama3 for Llama, longrope for Phi-3",
            )
        elif part is near and kind != "default":
            raise refuse(
                f"config.json: sliding_attention has rope_type {shown(kind)}, and llama.cpp "
                "stretches the rotation of blocks without a window alone"
            )
        elif kind == "yarn":
            _check_yarn(settings, part)
        share = part.get("partial_rotary_factor", 1.0)
        if share != 1.0 and "longrope" not in also:
            raise refuse(f"config.json: partial_rotary_factor {share} is not written here")


def _check_yarn(settings: Settings, rope: Mapping[str, Any]) -> None:
    """Refuse what llama.cpp's yarn does not do."""
    if not rope.get("truncate", True):
        raise refuse("config.json: truncate is off, and llama.cpp rounds the bounds of yarn")
    if "sliding_attention" in settings["rope_parameters"]:
        more = yarn_attention(settings, rope)
        if not math.isclose(more, 1.0, rel_tol=1e-6):
            raise refuse(
                "config.json: attention_factor or mscale is set, which llama.cpp would take for "
                "blocks with a window, too"
            )


def check_windows(settings: Settings) -> Iterator[str]:
    """Tell of a sliding window that llama.cpp does not know for the family."""
    window, reach = settings.get("sliding_window"), settings.get("max_position_embeddings") or 0
    if type(window) is int and 0 < window < reach:
        yield (
            f"sliding_window {window} is not used by llama.cpp here: beyond it, "
            "answers may differ from transformers'"
        )
