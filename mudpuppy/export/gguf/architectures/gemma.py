"""Gemma 2 and the text part of Gemma 3: norms are stored less 1, and windows alternate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mudpuppy.export.gguf.architectures.family import (
    EMBEDDING,
    HEAD,
    Entry,
    Family,
    Row,
    Settings,
    attention_rows,
    block_row,
    defaults,
    feed_rows,
    head_size,
    kv_heads,
    number,
    refuse,
    whole,
)
from mudpuppy.export.gguf.architectures.rotation import (
    check_rotation,
    describe_common,
    describe_scaling,
    main_rotation,
)

DEFAULT_THETA = 10_000.0
"""Base of the rotation where none is stored; llama.cpp's converter stores none for Gemma 2."""


def _describe_gemma2(settings: Settings) -> Iterator[Entry]:
    yield "context_length", whole(settings, "max_position_embeddings")
    yield "embedding_length", whole(settings, "hidden_size")
    yield "block_count", whole(settings, "num_hidden_layers")
    yield "feed_forward_length", whole(settings, "intermediate_size")
    yield "head_count", whole(settings, "num_attention_heads")
    yield "head_count_kv", kv_heads(settings)
    yield "layer_norm_rms_eps", number(settings, "rms_norm_eps")
    yield "key_length", head_size(settings)
    yield "value_length", head_size(settings)
    yield "attn_logit_softcapping", number(settings, "attn_logit_softcapping")
    yield "final_logit_softcapping", number(settings, "final_logit_softcapping")
    yield "sliding_window", whole(settings, "sliding_window")
    rope = main_rotation(settings)
    yield from describe_scaling(settings, rope)
    if rope.get("rope_theta", DEFAULT_THETA) != DEFAULT_THETA:
        yield "rope_freq_base", number(rope, "rope_theta")


def _describe_gemma3(settings: Settings) -> Iterator[Entry]:
    yield from describe_common(settings)
    if settings.get("final_logit_softcapping"):
        yield "final_logit_softcapping", number(settings, "final_logit_softcapping")
    yield "sliding_window", whole(settings, "sliding_window")


def _check_windows(settings: Settings, period: int) -> None:
    """Refuse another order of windows than llama.cpp's: every `period`-th block sees everything."""
    kinds = settings.get("layer_types")
    wanted = [
        "sliding_attention" if (block + 1) % period else "full_attention"
        for block in range(whole(settings, "num_hidden_layers"))
    ]
    is_other = kinds is None and settings.get("sliding_window_pattern", period) != period
    if is_other or kinds not in (None, wanted):
        raise refuse(
            "config.json: layer_types is not what llama.cpp takes for granted: attention to "
            f"everything in every {period}th block, a sliding window in the others"
        )


def _check_scale(settings: Settings, large: int) -> None:
    """Refuse another scale of the attention than llama.cpp's, which knows it by the model's depth.

    Args:
        settings: of the model.
        large: blocks of the model whose scale goes by the width of all heads.
    """
    scalar = settings.get("query_pre_attn_scalar")
    wide, heads = whole(settings, "hidden_size"), whole(settings, "num_attention_heads")
    is_large = whole(settings, "num_hidden_layers") == large
    taken = wide // heads if is_large else head_size(settings)
    if scalar is not None and scalar != taken:
        raise refuse(
            f"config.json: query_pre_attn_scalar is {scalar}, and llama.cpp computes with {taken}"
        )
    if settings.get("use_bidirectional_attention"):
        raise refuse("config.json: use_bidirectional_attention is not written")


def _check_gemma2(settings: Settings) -> Iterator[str]:
    _check_windows(settings, 2)
    _check_scale(settings, 46)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not isinstance(settings.get(key), int | float):
            raise refuse(f"config.json: {key} is not set, and llama.cpp always caps")
    yield from check_rotation(settings)


def _check_gemma3(settings: Settings) -> Iterator[str]:
    _check_windows(settings, 6)
    _check_scale(settings, 62)
    if settings.get("attn_logit_softcapping") is not None:
        raise refuse("config.json: attn_logit_softcapping is set, which Gemma 3 does not have")
    yield from check_rotation(settings)


def _norm(stored: str, name: str, size: str = "hidden") -> Row:
    return block_row(f"{stored}.weight", f"{name}.weight", size, shift=1.0)


_SHARED = (
    EMBEDDING,
    Row(stored=("model.norm.weight",), name="output_norm.weight", shape=("hidden",), shift=1.0),
    HEAD,
    _norm("input_layernorm", "attn_norm"),
    _norm("post_attention_layernorm", "post_attention_norm"),
    _norm("pre_feedforward_layernorm", "ffn_norm"),
    _norm("post_feedforward_layernorm", "post_ffw_norm"),
    *(row for row in attention_rows() if not row.is_optional),
    *feed_rows(),
)

_SHAPE = (2304, 9216, 26, 8, 4)
_ALIKE: dict[str, Any] = {
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}

GEMMA2 = Family(
    name="gemma2",
    classes=("Gemma2ForCausalLM",),
    rows=_SHARED,
    defaults=defaults(
        256_000,
        _SHAPE,
        8192,
        final_logit_softcapping=30.0,
        attn_logit_softcapping=50.0,
        **_ALIKE,
    ),
    describe=_describe_gemma2,
    check=_check_gemma2,
    head="never",
    activation="gelu_pytorch_tanh",
)
GEMMA3 = Family(
    name="gemma3",
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    rows=(
        *_SHARED,
        _norm("self_attn.q_norm", "attn_q_norm", "head"),
        _norm("self_attn.k_norm", "attn_k_norm", "head"),
    ),
    defaults=defaults(
        262_208,
        _SHAPE,
        131_072,
        **{**_ALIKE, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0},
    ),
    describe=_describe_gemma3,
    check=_check_gemma3,
    activation="gelu_pytorch_tanh",
    alternates=True,
    skipped=("vision_tower.", "multi_modal_projector."),
)
