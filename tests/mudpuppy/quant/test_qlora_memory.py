"""What a training step over a 4-bit base holds at its peak, against one over a 16-bit base."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.linear4bit import replace_linears
from tests.mudpuppy.estimate.live import LiveBytes

WIDE = LlamaConfig(
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=12,
    num_attention_heads=8,
    num_key_value_heads=8,
    vocab_size=64,
)
"""Weights dominate: 77 MB in bf16, against a few tokens."""


def make_model() -> torch.nn.Module:
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(WIDE, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01) if parameter.dim() < 2 else parameter.uniform_(-0.02, 0.02)
        for name, buffer in model.named_buffers():
            assert "inv_freq" in name
            buffer.fill_(0.5)
    return model


def peak_of_a_step(model: torch.nn.Module) -> int:
    """Bytes of everything that a model holds, and of what is alive beside it at the peak."""
    targets = ["q_proj", "v_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad])
    held = sum(one.nbytes for one in (*adapted.parameters(), *adapted.buffers()))
    ids = torch.arange(16).view(1, 16)
    with LiveBytes() as live:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = adapted(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
    assert bool(torch.isfinite(loss))
    return held + live.peak


@pytest.fixture(scope="module")
def of_lora() -> int:
    return peak_of_a_step(make_model())


@pytest.mark.parametrize("name", ["nf4", "int4", "mxfp4"])
def test_a_qlora_step_takes_at_most_two_fifths_of_a_lora_step(name, of_lora, monkeypatch):
    monkeypatch.setattr("mudpuppy.quant.workspace._FREE", [])  # what it borrows counts
    model = make_model()
    replace_linears(model, FORMATS[name])
    assert peak_of_a_step(model) <= 0.4 * of_lora
