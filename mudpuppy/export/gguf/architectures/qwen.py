"""Qwen 2, 2.5 and 3, with and without experts."""

from __future__ import annotations

from collections.abc import Iterator

from mudpuppy.export.gguf.architectures.family import (
    EMBEDDING,
    HEAD,
    NORM,
    Entry,
    Family,
    Settings,
    attention_rows,
    block_row,
    defaults,
    expert_rows,
    feed_rows,
    head_size,
    norm_rows,
    refuse,
    whole,
)
from mudpuppy.export.gguf.architectures.rotation import (
    check_rotation,
    check_windows,
    describe_common,
)


def _describe_experts(settings: Settings) -> Iterator[Entry]:
    yield from describe_common(settings)
    if settings.get("moe_intermediate_size") is not None:
        yield "expert_feed_forward_length", whole(settings, "moe_intermediate_size")
    if settings.get("shared_expert_intermediate_size") is not None:
        shared = whole(settings, "shared_expert_intermediate_size")
        yield "expert_shared_feed_forward_length", shared


def _check(settings: Settings) -> Iterator[str]:
    yield from check_rotation(settings)
    yield from check_windows(settings)


def _check_plain_heads(settings: Settings) -> Iterator[str]:
    """Refuse heads that do not fill the width: llama.cpp's Qwen 2 takes that for granted."""
    wide, heads = whole(settings, "hidden_size"), whole(settings, "num_attention_heads")
    if heads * head_size(settings) != wide:
        raise refuse(f"{heads} heads of {head_size(settings)} do not make hidden_size {wide}")
    yield from _check(settings)


def _check_experts(settings: Settings, *, normalised: bool) -> None:
    """Refuse blocks without experts among those with them, and other weights of the experts."""
    if settings.get("decoder_sparse_step", 1) != 1 or settings.get("mlp_only_layers"):
        raise refuse(
            "config.json: decoder_sparse_step and mlp_only_layers leave blocks without experts, "
            "which llama.cpp does not read"
        )
    if bool(settings.get("norm_topk_prob")) is not normalised:
        raise refuse(
            f"config.json: norm_topk_prob is {settings.get('norm_topk_prob')}, and llama.cpp "
            f"computes this architecture as if it were {str(normalised).lower()}"
        )


def _check_qwen2_moe(settings: Settings) -> Iterator[str]:
    _check_experts(settings, normalised=False)
    yield from _check_plain_heads(settings)


def _check_qwen3_moe(settings: Settings) -> Iterator[str]:
    _check_experts(settings, normalised=True)
    yield from _check(settings)


_SHARED = (EMBEDDING, NORM, HEAD, *norm_rows(), *attention_rows())
_HEAD_NORMS = (
    block_row("self_attn.q_norm.weight", "attn_q_norm.weight", "head"),
    block_row("self_attn.k_norm.weight", "attn_k_norm.weight", "head"),
)
_EXPERTS = expert_rows("mlp", "gate_proj", "up_proj", "down_proj")
_SHARED_EXPERT = (
    *feed_rows("mlp.shared_expert", end="_shexp", size="shared_feed"),
    block_row(
        "mlp.shared_expert_gate.weight",
        "ffn_gate_inp_shexp.weight",
        "one",
        "hidden",
        is_exact=True,
    ),
)

_WINDOW = {"use_sliding_window": False, "sliding_window": 4096}
_SPARSE = {"decoder_sparse_step": 1, "mlp_only_layers": None, "norm_topk_prob": False}

QWEN2 = Family(
    name="qwen2",
    classes=("Qwen2ForCausalLM",),
    rows=(*_SHARED, *feed_rows()),
    defaults=defaults(151_936, (4096, 22016, 32, 32, 32), 32_768, **_WINDOW),
    describe=describe_common,
    check=_check_plain_heads,
)
QWEN3 = Family(
    name="qwen3",
    classes=("Qwen3ForCausalLM",),
    rows=(*_SHARED, *_HEAD_NORMS, *feed_rows()),
    defaults=defaults(151_936, (4096, 22016, 32, 32, 32), 32_768, head_dim=128, **_WINDOW),
    describe=describe_common,
    check=_check,
)
QWEN2_MOE = Family(
    name="qwen2moe",
    classes=("Qwen2MoeForCausalLM",),
    rows=(*_SHARED, *_EXPERTS, *_SHARED_EXPERT),
    defaults=defaults(
        151_936,
        (2048, 5632, 24, 16, 16),
        32_768,
        moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632,
        num_experts_per_tok=4,
        num_experts=60,
        **_WINDOW,
        **_SPARSE,
    ),
    describe=_describe_experts,
    check=_check_qwen2_moe,
    head="required",
)
QWEN3_MOE = Family(
    name="qwen3moe",
    classes=("Qwen3MoeForCausalLM",),
    rows=(*_SHARED, *_HEAD_NORMS, *_EXPERTS),
    defaults=defaults(
        151_936,
        (2048, 6144, 24, 32, 4),
        32_768,
        moe_intermediate_size=768,
        num_experts_per_tok=8,
        num_experts=128,
        **_WINDOW,
        **_SPARSE,
    ),
    describe=_describe_experts,
    check=_check_qwen3_moe,
)
