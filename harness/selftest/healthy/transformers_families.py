"""Random models of many families, saved by transformers: with heads, experts, eyes and ears."""

from __future__ import annotations

from functools import partial
from typing import Any

from harness.selftest.make import SIZES, SPECIAL, make_config, save_random
from harness.selftest.registry import Patient, Ward, healthy

SHAPE: dict[str, Any] = {**SIZES, **SPECIAL}
HEAD = {"head_dim": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("LlamaConfig", {**SHAPE, "tie_word_embeddings": True}),
    "llama-biased": ("LlamaConfig", {**SHAPE, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2Config", SHAPE),
    "qwen2-tied": ("Qwen2Config", {**SHAPE, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**SHAPE, **HEAD}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {**SHAPE, **HEAD, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        {
            **SHAPE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "mixtral": ("MixtralConfig", {**SHAPE, "num_local_experts": 2}),
    "gemma": ("GemmaConfig", {**SHAPE, **HEAD}),
    "gemma2": ("Gemma2Config", {**SHAPE, **HEAD}),
    "gemma3": ("Gemma3TextConfig", {**SHAPE, **HEAD}),
    "phi": ("PhiConfig", SHAPE),
    "phi3": ("Phi3Config", SHAPE),
    "mistral": ("MistralConfig", SHAPE),
    "olmo2": ("Olmo2Config", SHAPE),
    "granite": ("GraniteConfig", SHAPE),
    "cohere": ("CohereConfig", SHAPE),
    "stablelm": ("StableLmConfig", SHAPE),
    "starcoder2": ("Starcoder2Config", SHAPE),
    "smollm3": ("SmolLM3Config", SHAPE),
    "gpt2": ("GPT2Config", {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, **SPECIAL}),
    "gpt-neox": ("GPTNeoXConfig", SHAPE),
    "falcon": (
        "FalconConfig",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            **SPECIAL,
        },
    ),
    "opt": (
        "OPTConfig",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 64,
            **SPECIAL,
        },
    ),
    "bloom": (
        "BloomConfig",
        {"vocab_size": 96, "hidden_size": 32, "n_layer": 3, "n_head": 4, **SPECIAL},
    ),
    "deepseek-v3": (
        "DeepseekV3Config",
        {
            **SHAPE,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "gpt-oss": ("GptOssConfig", {**SHAPE, **HEAD, "num_local_experts": 4}),
    "apertus": ("ApertusConfig", SHAPE),
    "jamba": ("JambaConfig", {**SHAPE, "num_experts": 4, "mamba_d_state": 4, "mamba_dt_rank": 2}),
    "mamba": (
        "MambaConfig",
        {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4, **SPECIAL},
    ),
}
"""Language models: the class of the configuration, and its settings."""
DTYPES = {
    "llama-tied": "bf16",
    "qwen2": "bf16",
    "gemma2": "bf16",
    "phi3": "fp16",
    "mixtral": "fp16",
}
"""In what the families are saved that are also saved in fp32 elsewhere."""
NOTES = {"apertus": ("rope-disagrees",)}
"""What may be said of them: the class counts on more positions than such a small one has."""
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": (
        "AutoModelForSeq2SeqLM",
        "T5Config",
        {
            "vocab_size": 96,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 3,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": (
        "AutoModelForSeq2SeqLM",
        "BartConfig",
        {
            "vocab_size": 96,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 64,
            **SPECIAL,
        },
    ),
    "mllama": (
        "AutoModelForCausalLM",
        "MllamaConfig",
        {"text_config": {**SHAPE, "cross_attention_layers": [1]}},
    ),
    "modernbert": (
        "AutoModelForMaskedLM",
        "ModernBertConfig",
        {**{key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}},
    ),
    "bert": (
        "AutoModelForMaskedLM",
        "BertConfig",
        {key: value for key, value in SIZES.items() if key != "num_key_value_heads"},
    ),
    "bert-classifier": (
        "AutoModelForSequenceClassification",
        "BertConfig",
        {
            **{key: value for key, value in SIZES.items() if key != "num_key_value_heads"},
            "num_labels": 3,
        },
    ),
    "llama-reward": (
        "AutoModelForSequenceClassification",
        "LlamaConfig",
        {**SHAPE, "num_labels": 1},
    ),
    "llama-tagger": ("AutoModelForTokenClassification", "LlamaConfig", {**SHAPE, "num_labels": 2}),
    "llama-bare": ("AutoModel", "LlamaConfig", SHAPE),
    "whisper": (
        "AutoModelForSpeechSeq2Seq",
        "WhisperConfig",
        {
            "vocab_size": 96,
            "d_model": 32,
            "encoder_layers": 3,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
            "decoder_start_token_id": 2,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
    ),
    "vit": (
        "AutoModelForImageClassification",
        "ViTConfig",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 16,
            "patch_size": 8,
        },
    ),
}
"""Models with other heads: the class that opens them, that of the configuration, its settings."""


def save_family(ward: Ward, *, kind: str, settings: dict[str, Any], dtype: str) -> Patient:
    """Save a language model."""
    save_random(ward.folder, make_config(kind, **settings), dtype=dtype)
    return Patient(path=ward.folder)


def save_other(ward: Ward, *, auto: str, kind: str, settings: dict[str, Any]) -> Patient:
    """Save a model that is opened by another class than language models are."""
    save_random(ward.folder, make_config(kind, **settings), auto=auto)
    return Patient(path=ward.folder)


def save_seeing(ward: Ward, *, family: str) -> Patient:
    """Save a model of images with its tokenizer and processor."""
    from mudpuppy.tiny.families import build_family

    build_family(family, ward.folder)
    return Patient(path=ward.folder)


@healthy("transformers-kv-shared")
def save_sharing_layers(ward: Ward) -> Patient:
    """Save a Gemma 3n, whose last layer has no keys and values of its own."""
    config = make_config(
        "Gemma3nTextConfig",
        **SHAPE | HEAD | {"num_hidden_layers": 4},
        vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=1,
        laurel_rank=4,
        activation_sparsity_pattern=None,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    save_random(ward.folder, config)
    return Patient(path=ward.folder)


for _name, (_kind, _settings) in FAMILIES.items():
    healthy(f"transformers-{_name}", notes=NOTES.get(_name, ()))(
        partial(save_family, kind=_kind, settings=_settings, dtype=DTYPES.get(_name, "fp32"))
    )
for _name, (_auto, _kind, _settings) in OTHERS.items():
    healthy(f"transformers-{_name}")(
        partial(save_other, auto=_auto, kind=_kind, settings=_settings)
    )
for _name in ("llava", "qwen2-vl"):
    healthy(f"transformers-{_name}")(partial(save_seeing, family=_name))
