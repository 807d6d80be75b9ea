"""Adapters that come close to a fault: of tasks with a head, of the attention beside experts."""

from __future__ import annotations

from harness.selftest.healthy.peft_lora import make_lora
from harness.selftest.make import save_tuned
from harness.selftest.registry import Patient, Ward, healthy


@healthy("peft-classifier")
def save_classifier(ward: Ward) -> Patient:
    """Save an adapter of a classifier, whose head PEFT saves along."""
    base = ward.get("transformers-llama").path
    settings = make_lora(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"])
    save_tuned(ward.folder, base, settings, auto="AutoModelForSequenceClassification")
    return Patient(path=ward.folder, options={"base": base})


@healthy("peft-attention-of-experts")
def save_attention_of_experts(ward: Ward) -> Patient:
    """Save an adapter of the attention of a model of experts."""
    base = ward.get("transformers-mixtral").path
    save_tuned(ward.folder, base, make_lora(target_modules=["q_proj", "o_proj"]))
    return Patient(path=ward.folder, options={"base": base})
