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


@healthy("mlx-adapter")
def save_as_mlx(ward: Ward) -> Patient:
    """Save what MLX leaves: factors the other way round, an earlier step, settings of its own."""
    import json

    import torch
    from safetensors.torch import save_file

    torch.manual_seed(4)
    tensors = {}
    for layer in range(3):
        module = f"model.layers.{layer}.self_attn.q_proj"
        tensors[f"{module}.lora_a"] = torch.randn(32, 8) * 0.1
        tensors[f"{module}.lora_b"] = torch.randn(8, 32) * 0.02
    for name in ("adapters.safetensors", "0000100_adapters.safetensors"):
        save_file(tensors, ward.folder / name)
    settings = {
        "fine_tune_type": "lora",
        "model": "mlx-community/some-model",
        "num_layers": 3,
        "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0},
    }
    path = ward.folder / "adapter_config.json"
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return Patient(path=ward.folder)
