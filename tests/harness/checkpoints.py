"""Tiny random checkpoints of many kinds, made with the real libraries, for the doctor's tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from harness.doctor import diagnose, summarise
from harness.findings import Status, Verdict

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
FAMILIES = {
    "llama": LlamaConfig(**SIZES, **SPECIAL),
    "llama-tied": LlamaConfig(**SIZES, **SPECIAL, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES, **SPECIAL),
    "qwen3": Qwen3Config(**SIZES, **SPECIAL, head_dim=8),
    "gemma2": Gemma2Config(**SIZES, **SPECIAL, head_dim=8),
    "gemma3": Gemma3TextConfig(**SIZES, **SPECIAL, head_dim=8),
    "phi3": Phi3Config(**SIZES, **SPECIAL),
    "mistral": MistralConfig(**SIZES, **SPECIAL),
    "mixtral": MixtralConfig(**SIZES, **SPECIAL, num_local_experts=2),
}
ADAPTERS = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["q_proj", "up_proj"], "use_rslora": True, "r": 8},
    "rank-pattern": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6},
    },
    "alpha-pattern": {
        "target_modules": ["q_proj", "v_proj"],
        "alpha_pattern": {r"^model\.layers\.0.*q_proj": 32},
    },
    "modules-to-save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "bias-all": {"target_modules": ["q_proj"], "bias": "all"},
    "bias-lora": {"target_modules": ["q_proj"], "bias": "lora_only"},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [90, 91]},
    "some-layers": {"target_modules": ["q_proj"], "layers_to_transform": [0, 2]},
    "pattern": {"target_modules": r".*\.layers\.[01]\..*(q|k)_proj"},
    "lora-bias": {"target_modules": ["q_proj"], "lora_bias": True, "base": "qwen2"},
}
ADVICE = {"adapter-scale-unportable", "adapter-needs-merging", "base-named-loosely"}
"""Probes whose notes are right on healthy adapters."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def save_base(folder: Path, family: str = "llama", dtype: str = "fp32", **how: object) -> Path:
    """Save a random model."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family], dtype=DTYPES[dtype])
    model.save_pretrained(folder, **how)
    return folder


def save_adapter(
    folder: Path, base: Path, kind: str = "plain", *, scale: float = 0.02, dtype: str = "fp32"
) -> Path:
    """Save an adapter with values as training leaves them, and record the path of its base."""
    settings = {"r": 4, "lora_alpha": 8, **ADAPTERS[kind]}
    settings.pop("base", None)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=DTYPES[dtype])
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)
    wrapped.save_pretrained(folder)
    return folder


def save_merged(folder: Path, base: Path, adapter: Path, *, dtype: str = "fp32") -> Path:
    """Save the merge that PEFT makes."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=DTYPES[dtype])
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, tokens: int) -> None:
    """Write a tokenizer.json with ids 0 to tokens - 1."""
    vocab = {f"t{number}": number for number in range(tokens - 1)}
    added = [{"id": tokens - 1, "content": "<end>", "special": True}]
    value = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(value))


def edit_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; None removes one."""
    value = json.loads(path.read_text())
    for key, new in changes.items():
        if new is None:
            value.pop(key, None)
        else:
            value[key] = new
    path.write_text(json.dumps(value))


def edit_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]
) -> None:
    """Load the one weights file of a folder, change the tensors, and save them."""
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    made = change(tensors)
    kept = tensors if made is None else made
    save_file({k: v.contiguous().clone() for k, v in kept.items()}, path, {"format": "pt"})


def copy(source: Path, target: Path) -> Path:
    """Copy a checkpoint so that it may be damaged."""
    shutil.copytree(source, target)
    return target


def round_int4(weight: torch.Tensor, block_size: int = 16) -> torch.Tensor:
    """Return a matrix after blockwise symmetric int4, written independently of the engine."""
    rows = weight.float().numpy().astype(np.float32)
    out = np.empty_like(rows)
    for start in range(0, rows.shape[1], block_size):
        block = rows[:, start : start + block_size]
        scale = np.abs(block).max(axis=1, keepdims=True) / np.float32(7)
        out[:, start : start + block_size] = np.clip(np.rint(block / scale), -7, 7) * scale
    return torch.from_numpy(out)


def found_in(path: Path, **options: object) -> set[str]:
    """Return the names of the probes that found something in a sick checkpoint."""
    diagnosis = diagnose(path, **options)
    crashed = [r for r in diagnosis.probes if r.status is Status.CRASHED]
    assert not crashed, summarise(diagnosis)
    assert diagnosis.verdict is Verdict.SICK, summarise(diagnosis)
    assert all(r.evidence and r.cause and r.remedy for r in diagnosis.findings)
    return {r.name for r in diagnosis.findings if r.name not in ADVICE}
