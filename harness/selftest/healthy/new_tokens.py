"""Healthy models whose vocabulary grew: trained markers, idle pad tokens, reserved rows."""

from __future__ import annotations

from typing import Any

from harness.selftest.edit import edit_tensors
from harness.selftest.healthy.chat_models import save_style
from harness.selftest.registry import Patient, Ward, healthy

MARKERS = ["<|new_turn|>", "<|new_end|>"]
"""Tokens that are added."""


def grow(ward: Ward, added: list[str], *, pad: bool = False) -> Patient:
    """Add tokens to a chat model as people do: tokenizer first, then the embedding."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = ward.folder / "base"
    save_style(base, "plain-heads")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    if pad:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    if added:
        tokenizer.add_special_tokens({"additional_special_tokens": added})
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(ward.folder / "tuned")
    tokenizer.save_pretrained(ward.folder / "tuned")
    return Patient(path=ward.folder / "tuned", options={"base": base})


@healthy("tokens-added-and-trained")
def add_and_train(ward: Ward) -> Patient:
    """Add two markers and train their rows, as any training of the embedding does."""
    patient = grow(ward, MARKERS)

    def train(tensors: dict[str, Any]) -> None:
        import torch

        torch.manual_seed(5)
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            rows = tensors[key][-2:]
            rows += torch.randn_like(rows) * 0.3 * tensors[key].std()

    edit_tensors(patient.path, train)
    return patient


@healthy("tokens-pad-added")
def add_pad(ward: Ward) -> Patient:
    """Add a pad token, whose row nothing ever trains."""
    return grow(ward, [], pad=True)
