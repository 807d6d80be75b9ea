"""Tiny random checkpoints of many kinds, made with the real libraries, for the doctor's tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
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

from harness.doctor import diagnose
from harness.doctor.visit import summarise
from harness.findings import Diagnosis, Severity, Status, Verdict
from harness.selftest.damages.merges import round_int4
from harness.selftest.edit import edit_json, edit_tensors
from harness.selftest.healthy.peft_lora import KINDS
from harness.selftest.make import SIZES, SPECIAL

__all__ = ["SIZES", "SPECIAL", "edit_json", "edit_tensors", "round_int4"]

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
    **KINDS,
    "plain": {"target_modules": ["q_proj", "v_proj"]},
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


def copy(source: Path, target: Path) -> Path:
    """Copy a checkpoint so that it may be damaged."""
    shutil.copytree(source, target)
    return target


def found_in(path: Path, **options: object) -> set[str]:
    """Return the names of the probes that found something in a sick checkpoint."""
    diagnosis = diagnose(path, **options)
    crashed = [r for r in diagnosis.probes if r.status is Status.CRASHED]
    assert not crashed, summarise(diagnosis)
    assert diagnosis.verdict is Verdict.SICK, summarise(diagnosis)
    assert all(r.evidence and r.cause and r.remedy for r in diagnosis.findings)
    return {r.name for r in diagnosis.findings if r.name not in ADVICE}


def assert_clean(path: Path, **options: object) -> Diagnosis:
    """Require that nothing but advice is found, and return what was said."""
    diagnosis = diagnose(path, **options)
    bad = [
        r
        for r in diagnosis.probes
        if r.status is Status.CRASHED
        or (r.status is Status.FAILED and not (r.severity is Severity.NOTE and r.name in ADVICE))
    ]
    assert not bad, summarise(diagnosis)
    assert diagnosis.verdict is Verdict.HEALTHY, diagnosis.why
    return diagnosis
