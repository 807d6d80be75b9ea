"""Adapters of other methods than LoRA, of other tasks and of parts that are seldom adapted."""

from __future__ import annotations

from typing import Any

from harness.selftest.healthy.peft_llama import SIZES
from harness.selftest.registry import Patient, Ward, healthy


def save_tuned(
    ward: Ward, settings: Any, base: str = "transformers-llama", kind: str = ""
) -> Patient:
    """Save an adapter of any method, with values as training leaves them.

    Args:
        ward: where to.
        settings: PEFT's configuration.
        base: name of the healthy model it is put on.
        kind: Auto class of the task, without `AutoModelFor`; the causal one by default.
    """
    import torch
    import transformers
    from peft import get_peft_model

    auto = getattr(transformers, f"AutoModelFor{kind or 'CausalLM'}")
    folder = ward.get(base).path
    wrapped = get_peft_model(auto.from_pretrained(folder), settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    wrapped.save_pretrained(ward.folder)
    return Patient(path=ward.folder, options={"base": folder})


@healthy("peft-ia3")
def save_ia3(ward: Ward) -> Patient:
    """Save vectors that stretch."""
    from peft import IA3Config

    settings = IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    )
    return save_tuned(ward, settings)


@healthy("peft-vera")
def save_vera(ward: Ward) -> Patient:
    """Save vectors beside random projections that all modules share."""
    from peft import VeraConfig

    return save_tuned(ward, VeraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))


@healthy("peft-loha")
def save_loha(ward: Ward) -> Patient:
    """Save products of two low-rank matrices."""
    from peft import LoHaConfig

    return save_tuned(ward, LoHaConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))


@healthy("peft-adalora")
def save_adalora(ward: Ward) -> Patient:
    """Save factors with singular values between them."""
    from peft import AdaLoraConfig

    settings = AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=4, target_r=2, total_step=10, target_modules=["q_proj"]
    )
    return save_tuned(ward, settings)


@healthy("peft-classifier")
def save_classifier(ward: Ward) -> Patient:
    """Save an adapter of a classifier, whose head PEFT saves along."""
    from peft import LoraConfig

    settings = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"])
    return save_tuned(ward, settings, kind="SequenceClassification")


@healthy("peft-saved-head", notes=("adapter-needs-merging",))
def save_head(ward: Ward) -> Patient:
    """Save an adapter with a head of its own."""
    from peft import LoraConfig

    settings = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    return save_tuned(ward, settings)


@healthy("transformers-mixtral")
def save_mixtral(ward: Ward) -> Patient:
    """Save a random model of experts."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2)).save_pretrained(ward.folder)
    return Patient(path=ward.folder)


@healthy("peft-attention-of-experts")
def save_attention_of_experts(ward: Ward) -> Patient:
    """Save an adapter of the attention of a model of experts."""
    from peft import LoraConfig

    settings = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "o_proj"])
    return save_tuned(ward, settings, "transformers-mixtral")
