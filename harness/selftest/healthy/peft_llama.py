"""A random Llama saved by transformers, an adapter saved by PEFT, and the merge of the two."""

from __future__ import annotations

from harness.selftest.healthy.peft_lora import make_lora
from harness.selftest.make import SIZES, SPECIAL, save_merge, save_tuned
from harness.selftest.registry import Patient, Ward, healthy


@healthy("transformers-llama")
def save_model(ward: Ward) -> Patient:
    """Save a random model in fp32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES, **SPECIAL)).save_pretrained(ward.folder)
    return Patient(path=ward.folder)


@healthy("peft-lora")
def save_adapter(ward: Ward) -> Patient:
    """Save an adapter of query and value projections with values as training leaves them."""
    base = ward.get("transformers-llama").path
    save_tuned(ward.folder, base, make_lora(target_modules=["q_proj", "v_proj"]))
    return Patient(path=ward.folder, options={"base": base})


@healthy("peft-merged")
def save_merged(ward: Ward) -> Patient:
    """Save what PEFT's merge makes of model and adapter."""
    base, adapter = ward.get("transformers-llama").path, ward.get("peft-lora").path
    save_merge(ward.folder, base, adapter)
    return Patient(path=ward.folder, options={"base": base, "adapter": adapter})
