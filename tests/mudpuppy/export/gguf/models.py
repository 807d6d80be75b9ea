"""Small models of every family that is written as GGUF; their values are the same everywhere."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 96
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "long_factor": [1.0 + 0.37 * n for n in range(8)],
    "short_factor": [1.0 + 0.01 * n for n in range(8)],
    "original_max_position_embeddings": 128,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
    ),
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"head_dim": 32, "sliding_window": None}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen2moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 64}),
    "qwen3moe": ("Qwen3Moe", {**EXPERTS, "head_dim": 32, "norm_topk_prob": True}),
    "gemma2": ("Gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32}),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32, "num_hidden_layers": 7},
    ),
    "phi3": ("Phi3", {}),
    "phi3-long": ("Phi3", {"rope_parameters": LONG}),
}
"""Configuration class of transformers, and what it has beyond the shape."""
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def make_model(
    folder: Path, kind: str, *, dtype: str = "bf16", max_shard_size: str = "5GB", **changes: Any
) -> Path:
    """Write a model as save_pretrained does, with a tokenizer.json of as many tokens."""
    import torch
    import transformers

    name, special = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **special, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            values = np.random.RandomState(zlib.crc32(weight_name.encode()))
            made = values.standard_normal(tuple(weight.shape)).astype(np.float32) * 0.05
            weight.copy_(
                torch.from_numpy(made + (1.0 if weight_name.endswith("norm.weight") else 0))
            )
    model.to(getattr(torch, DTYPES[dtype])).save_pretrained(folder, max_shard_size=max_shard_size)
    vocabulary = {f"t{n}": n for n in range(VOCABULARY)}
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "added_tokens": []}
        )
    )
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change config.json; None takes a key away."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_tensors(folder: Path, change: Any) -> None:
    """Replace the tensors of a model by what `change` makes of their dictionary."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({k: v.clone() for k, v in change(tensors).items()}, path, {"format": "pt"})
