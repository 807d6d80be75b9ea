"""Healthy models whose values are unusual: pruned, padded, small norms, heads repeated, uneven."""

from __future__ import annotations

from typing import Any

from harness.selftest.edit import edit_tensors
from harness.selftest.make import SIZES, SPECIAL
from harness.selftest.registry import Patient, Ward, healthy

DEEP: dict[str, Any] = {**SIZES, **SPECIAL, "num_hidden_layers": 6}
"""Six layers, so that siblings say something."""


@healthy("weights-six-layers")
def save_deep(ward: Ward) -> Patient:
    """Save a random Llama of six layers in bf16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**DEEP)).to(torch.bfloat16).save_pretrained(ward.folder)
    return Patient(path=ward.folder)


@healthy("weights-six-layers-tuned")
def save_tuned(ward: Ward) -> Patient:
    """Move every weight of the six layers by a few percent, and compare with the base."""
    import torch
    from transformers import AutoModelForCausalLM

    base = ward.get("weights-six-layers").path
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03 * parameter.std())
    model.save_pretrained(ward.folder)
    return Patient(path=ward.folder, options={"base": base})


@healthy("weights-pruned-everywhere")
def save_pruned(ward: Ward) -> Patient:
    """Zero a quarter of the rows of every MLP, as structured pruning without surgery does."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ward.get("weights-six-layers").path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "up_proj" in name or "gate_proj" in name:
                parameter[4:16] = 0
            if "down_proj" in name:
                parameter[:, 4:16] = 0
    model.save_pretrained(ward.folder)
    return Patient(path=ward.folder)


@healthy("weights-uneven-by-depth")
def save_uneven(ward: Ward) -> Patient:
    """Let layers grow with depth up to three times, with larger first and last ones."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ward.get("weights-six-layers").path)
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            for parameter in layer.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(1 + 0.4 * number + (number in (0, 5)))
    model.save_pretrained(ward.folder)
    return Patient(path=ward.folder)


@healthy("weights-heads-repeated")
def save_repeated_heads(ward: Ward) -> Patient:
    """Repeat key and value heads, as a change from few heads to many does."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**DEEP, "num_key_value_heads": 4}))
    with torch.no_grad():
        for layer in model.model.layers:
            for module in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                module.weight[8:16] = module.weight[:8]
                module.weight[24:] = module.weight[16:24]
    model.save_pretrained(ward.folder)
    return Patient(path=ward.folder)


@healthy("weights-few-dead-neurons")
def save_dead_neurons(ward: Ward) -> Patient:
    """Leave one neuron here and there at zero, as weight decay in fp16 does."""
    patient = ward.get("weights-six-layers")
    import shutil

    shutil.copytree(patient.path, ward.folder, dirs_exist_ok=True)

    def kill(tensors: dict[str, Any]) -> None:
        for number, row in ((1, 3), (4, 30)):
            tensors[f"model.layers.{number}.mlp.up_proj.weight"][row] = 0

    edit_tensors(ward.folder, kill)
    return Patient(path=ward.folder)


@healthy("weights-gemma2")
def save_gemma(ward: Ward) -> Patient:
    """Save a random Gemma 2, whose norms are near zero."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(**DEEP, head_dim=8))
    model.to(torch.bfloat16).save_pretrained(ward.folder)
    return Patient(path=ward.folder)


@healthy("weights-mixtral")
def save_moe(ward: Ward) -> Patient:
    """Save a random Mixtral, one expert of which was hardly ever chosen and shrank."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**DEEP, num_local_experts=4))
    model.save_pretrained(ward.folder)

    def shrink(tensors: dict[str, Any]) -> dict[str, Any]:
        return {k: v * 0.5 if ".experts.3." in k else v for k, v in tensors.items()}

    edit_tensors(ward.folder, shrink)
    return Patient(path=ward.folder)
