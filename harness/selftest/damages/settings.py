"""Damages of settings beside sound weights: vocabulary, special tokens, quantisation."""

from __future__ import annotations

import json
import shutil
from typing import Any

from harness.selftest.edit import Tensors, edit_json, edit_tensors
from harness.selftest.registry import Patient, damage


def write_tokenizer(patient: Patient, tokens: int) -> None:
    """Put a minimal tokenizer with ids 0 to tokens - 1 beside a model."""
    vocab = {f"t{number}": number for number in range(tokens - 1)}
    added = [{"id": tokens - 1, "content": "<end>", "special": True}]
    value = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": added}
    (patient.path / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")


@damage("tokens-added", patient="transformers-llama", mode="FM11", probe="vocabulary-mismatch")
def add_token(patient: Patient) -> None:
    """Add a token to the tokenizer and no row to the model."""
    write_tokenizer(patient, 97)


@damage("tokens-added-for-real", patient="tokenizer-fast", mode="FM11", probe="vocabulary-mismatch")
def add_tokens_for_real(patient: Patient) -> None:
    """Add tokens with transformers and forget `resize_token_embeddings`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(patient.path)
    tokenizer.add_tokens(["<tool>", "</tool>"])
    tokenizer.save_pretrained(patient.path)


@damage("vocabulary-cut", patient="tokenizer-fast", mode="FM11", probe="vocabulary-mismatch")
def cut_vocabulary(patient: Patient) -> None:
    """Save embedding and head with fewer rows than the tokenizer has tokens."""

    def change(tensors: Tensors) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:300]

    edit_tensors(patient.path, change)
    edit_json(patient.path / "config.json", vocab_size=300)


@damage("vocabulary-edited", patient="transformers-llama", mode="FM11", probe="vocabulary-mismatch")
def edit_vocabulary(patient: Patient) -> None:
    """Write another size of the vocabulary into the settings."""
    edit_json(patient.path / "config.json", vocab_size=128)


@damage("end-beyond", patient="tokenizer-handmade", mode="FM11", probe="vocabulary-mismatch")
def end_beyond(patient: Patient) -> None:
    """Name an end that the model has no row for."""
    edit_json(patient.path / "config.json", eos_token_id=500)


QUANTISED: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
}
"""What is left in the settings of a model whose weights are dense again."""


def _leave(patient: Patient, kind: str) -> None:
    edit_json(patient.path / "config.json", quantization_config=QUANTISED[kind])


for _kind, _patient in (
    ("bitsandbytes", "transformers-llama"),
    ("gptq", "transformers-bf16"),
    ("awq", "transformers-qwen2"),
    ("bitsandbytes", "peft-merged"),
):

    @damage(
        f"{_kind}-left-in-{_patient}",
        patient=_patient,
        mode="FM32",
        probe="quantisation-left-declared",
    )
    def leave(patient: Patient, kind: str = _kind) -> None:
        """Leave the settings of a quantised model with dense weights."""
        _leave(patient, kind)


def quantise(tensors: Tensors, part: str) -> Tensors:
    """Return tensors of which some are bytes and scales."""
    import torch

    made: Tensors = {}
    for key, value in tensors.items():
        if part in key:
            made[key.replace("weight", "qweight")] = (value * 100).to(torch.uint8)
            made[key.replace("weight", "scales")] = value.abs().amax(dim=1)
        else:
            made[key] = value
    return made


for _part in ("mlp.up_proj.weight", "_proj.weight"):

    @damage(
        f"quantised{_part.replace('.', '-').replace('_', '-')}",
        patient="transformers-llama",
        mode="FM33",
        probe="quantisation-undeclared",
    )
    def hide(patient: Patient, part: str = _part) -> None:
        """Save quantised buffers and declare no method."""
        edit_tensors(patient.path, lambda tensors: quantise(tensors, part))


@damage("method-undeclared", patient="engine-gptq", mode="FM33", probe="quantisation-undeclared")
def forget_method(patient: Patient) -> Patient:
    """Copy a GPTQ model elsewhere without what says that it is one."""
    folder = patient.path.parent / "alone"
    shutil.move(patient.path / "gptq", folder)
    edit_json(folder / "config.json", quantization_config=None)
    for name in ("quantize_config.json", "mudpuppy.json"):
        (folder / name).unlink()
    return Patient(path=folder)


# --- tokenizers and templates that nobody can use (FM01, FM04, FM11, FM46) -----------------------


@damage("end-is-no-token", patient="tokenizer-fast", mode="FM01", probe="special-token-unknown")
def name_unknown_end(patient: Patient) -> None:
    """Name an end that the vocabulary does not have, as mixed files do."""
    edit_json(patient.path / "tokenizer_config.json", eos_token="<|eot_id|>")


@damage("pad-is-no-token", patient="tokenizer-fast", mode="FM11", probe="special-token-unknown")
def name_unknown_pad(patient: Patient) -> None:
    """Name a token for padding that was never added."""
    edit_json(patient.path / "tokenizer_config.json", pad_token="[PAD]")


@damage("tokenizer-is-settings", patient="tokenizer-fast", mode="FM46", probe="tokenizer-unusable")
def overwrite_tokenizer(patient: Patient) -> None:
    """Copy the settings of the model onto the tokenizer."""
    shutil.copy(patient.path / "config.json", patient.path / "tokenizer.json")


@damage("template-cut", patient="tokenizer-fast", mode="FM04", probe="chat-template-broken")
def cut_template(patient: Patient) -> None:
    """Cut the end of the chat template off."""
    path = patient.path / "chat_template.jinja"
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.index("{% endfor %}") + 6], encoding="utf-8")
