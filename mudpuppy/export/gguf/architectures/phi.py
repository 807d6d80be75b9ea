"""Phi-3, Phi-3.5 and Phi-4: fused projections, and long contexts by tables of factors."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mudpuppy.export.gguf.architectures.family import (
    EMBEDDING,
    HEAD,
    LARGEST,
    NORM,
    Entry,
    Family,
    Settings,
    block_row,
    defaults,
    head_size,
    kv_heads,
    norm_rows,
    number,
    refuse,
    whole,
)
from mudpuppy.export.gguf.architectures.rotation import (
    check_rotation,
    check_windows,
    main_rotation,
)

LONG = ("longrope", "su", "yarn")
"""Names of the rotation by tables; the first models called it otherwise."""


def _rotated(settings: Settings) -> int:
    """Return how much of a head is rotated."""
    rope = main_rotation(settings)
    share = number(rope, "partial_rotary_factor") if "partial_rotary_factor" in rope else 1.0
    if share > 1:
        raise refuse(f"config.json: partial_rotary_factor is {share}, more than all")
    wide, heads = whole(settings, "hidden_size"), whole(settings, "num_attention_heads")
    return int(share * wide) // heads


def _trained_context(settings: Settings) -> int:
    """Return how long the texts were that the model was first trained with."""
    found = whole(main_rotation(settings), "original_max_position_embeddings")
    if found == 1:
        raise refuse("config.json: original_max_position_embeddings is 1, and has no logarithm")
    return found


def _describe(settings: Settings) -> Iterator[Entry]:
    yield "context_length", whole(settings, "max_position_embeddings")
    yield "rope_scaling_orig_ctx_len", _trained_context(settings)
    yield "embedding_length", whole(settings, "hidden_size")
    yield "feed_forward_length", whole(settings, "intermediate_size")
    yield "block_count", whole(settings, "num_hidden_layers")
    yield "head_count", whole(settings, "num_attention_heads")
    yield "head_count_kv", kv_heads(settings)
    yield "layer_norm_rms_eps", number(settings, "rms_norm_eps")
    yield "rope_dimension_count", _rotated(settings)
    yield "rope_freq_base", number(main_rotation(settings), "rope_theta")
    has_window = settings.get("sliding_window") is not None
    yield "sliding_window", whole(settings, "sliding_window") if has_window else 0
    if main_rotation(settings).get("long_factor"):
        yield "rope_scaling_attn_factors", _attention_factor(settings)


def _attention_factor(settings: Settings) -> float:
    """Return what attention is multiplied by: as given, or by how far the context is stretched."""
    rope, trained = main_rotation(settings), _trained_context(settings)
    if rope.get("attention_factor") is not None:
        return number(rope, "attention_factor")
    given = rope.get("factor") is not None
    reach = whole(settings, "max_position_embeddings")
    scale = number(rope, "factor") if given else reach / trained
    return math.sqrt(1 + math.log(scale) / math.log(trained)) if scale > 1.0 else 1.0


def _check(settings: Settings) -> Iterator[str]:
    yield from check_rotation(settings, also=LONG)
    yield from check_windows(settings)
    heads, size = whole(settings, "num_attention_heads"), head_size(settings)
    if heads * size != whole(settings, "hidden_size"):
        raise refuse(f"{heads} heads of {size} do not make hidden_size {settings['hidden_size']}")
    rope = main_rotation(settings)
    if rope["rope_type"] == "linear":
        raise refuse("config.json: rope_type linear is not written for Phi-3")
    if rope["rope_type"] not in LONG:
        return
    for key in ("long_factor", "short_factor"):
        table = rope.get(key)
        numbers = table if isinstance(table, list) else []
        is_valid = all(isinstance(one, int | float) and 0 < one < LARGEST for one in numbers)
        if not is_valid or len(numbers) != _rotated(settings) // 2:
            raise refuse(
                f"config.json: {key} must have {_rotated(settings) // 2} numbers, one for every "
                "frequency"
            )


def _factors(settings: Settings) -> Iterator[tuple[str, tuple[float, ...]]]:
    rope = main_rotation(settings)
    if rope.get("long_factor"):
        yield "rope_factors_long.weight", tuple(map(float, rope["long_factor"]))
        yield "rope_factors_short.weight", tuple(map(float, rope["short_factor"]))


PHI3 = Family(
    name="phi3",
    classes=("Phi3ForCausalLM",),
    rows=(
        *(EMBEDDING, NORM, HEAD),
        *norm_rows(),
        block_row("self_attn.qkv_proj.weight", "attn_qkv.weight", "qkv", "hidden"),
        block_row("self_attn.o_proj.weight", "attn_output.weight", "hidden", "q"),
        block_row("mlp.gate_up_proj.weight", "ffn_up.weight", "double_feed", "hidden"),
        block_row("mlp.down_proj.weight", "ffn_down.weight", "hidden", "feed"),
    ),
    defaults=defaults(
        32_064,
        (3072, 8192, 32, 32, None),
        4096,
        rms_norm_eps=1e-5,
        original_max_position_embeddings=4096,
    ),
    describe=_describe,
    check=_check,
    extra=_factors,
)
