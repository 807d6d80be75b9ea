"""A random Llama saved by transformers, an adapter saved by PEFT, and the merge of the two."""

from __future__ import annotations

from harness.selftest.make import SIZES, SPECIAL
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
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = ward.get("transformers-llama").path
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]
    )
    wrapped = get_peft_model(model, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    wrapped.save_pretrained(ward.folder)
    return Patient(path=ward.folder, options={"base": base})


@healthy("peft-merged")
def save_merged(ward: Ward) -> Patient:
    """Save what PEFT's merge makes of model and adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, adapter = ward.get("transformers-llama").path, ward.get("peft-lora").path
    model = AutoModelForCausalLM.from_pretrained(base)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(ward.folder)
    return Patient(path=ward.folder, options={"base": base, "adapter": adapter})
