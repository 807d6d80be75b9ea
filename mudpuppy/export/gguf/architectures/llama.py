"""Llama 1 to 3, Mistral and Mixtral, which are one architecture to llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

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
    number,
    refuse,
    whole,
)
from mudpuppy.export.gguf.architectures.rotation import (
    check_rotation,
    check_windows,
    describe_common,
    main_rotation,
)

LLAMA_3_1 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Its scaling, where a part of it is not given."""


def _describe(settings: Settings) -> Iterator[Entry]:
    yield from describe_common(settings)
    yield "vocab_size", whole(settings, "vocab_size")
    yield "rope_dimension_count", head_size(settings)


def _check(settings: Settings) -> Iterator[str]:
    yield from check_rotation(settings, also=("llama3",))
    yield from check_windows(settings)


def _frequencies(settings: Settings) -> Iterable[tuple[str, tuple[float, ...]]]:
    """Yield what Llama 3.1's scaling divides every frequency by.

    Frequencies whose waves are short against the trained context stay, those whose waves are long
    are divided by the factor, and in between the divisor grows (transformers'
    `_compute_llama3_parameters`). Powers are torch's, whose last bit numpy's need not have.
    """
    rope = main_rotation(settings)
    if rope.get("rope_type") != "llama3":
        return
    import torch

    size = head_size(settings)
    base, factor, low, high, context = (
        float(number({**LLAMA_3_1, **rope}, key)) for key in ("rope_theta", *LLAMA_3_1)
    )
    if high <= low:
        raise refuse(f"config.json: high_freq_factor {high} is not above low_freq_factor {low}")
    waves = 2 * math.pi / (1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    share = (context / waves - low) / (high - low)
    between = 1 / ((1 - share) / factor + share)
    long_ones = torch.where(waves > context / low, torch.full_like(waves, factor), between)
    found = torch.where(waves < context / high, torch.ones_like(waves), long_ones)
    yield "rope_freqs.weight", tuple(found.tolist())


_BIASES = tuple(
    block_row(f"mlp.{part}_proj.bias", f"ffn_{part}.bias", size, is_optional=True)
    for part, size in (("gate", "feed"), ("up", "feed"), ("down", "hidden"))
)
_SHARED = (EMBEDDING, NORM, HEAD, *norm_rows(), *attention_rows(turned=True, output_bias=True))

_WIDE = (4096, 14336, 32, 32, 8)

LLAMA = Family(
    name="llama",
    classes=("LlamaForCausalLM",),
    rows=(*_SHARED, *feed_rows(), *_BIASES),
    defaults=defaults(32_000, (4096, 11008, 32, 32, None), 2048),
    describe=_describe,
    check=_check,
    extra=_frequencies,
    fills_head=True,
)
MISTRAL = Family(
    name="llama",
    classes=("MistralForCausalLM",),
    rows=(*_SHARED, *feed_rows()),
    defaults=defaults(32_000, _WIDE, 131_072, sliding_window=4096),
    describe=_describe,
    check=_check,
    extra=_frequencies,
    fills_head=True,
)
MIXTRAL = Family(
    name="llama",
    classes=("MixtralForCausalLM",),
    rows=(*_SHARED, *expert_rows("block_sparse_moe", "w1", "w3", "w2")),
    defaults=defaults(
        32_000,
        _WIDE,
        131_072,
        rms_norm_eps=1e-5,
        rope_theta=1_000_000.0,
        num_local_experts=8,
        num_experts_per_tok=2,
    ),
    describe=_describe,
    check=_check,
    extra=_frequencies,
)
