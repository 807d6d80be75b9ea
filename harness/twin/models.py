"""The model of the twin: plain transformers and plain PEFT, opened as the settings say."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from harness.twin import arithmetic
from harness.twin.asked import Asked
from harness.twin.four_bits import round_to_4_bits
from harness.twin.ranges import has_ranges

COMPUTED_IN = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,
}
"""What is not a linear layer computes in bf16 beside fp8."""
FORMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "rm": ("AutoModelForSequenceClassification", "SEQ_CLS", {"num_labels": 1}),
    "prm": ("AutoModelForTokenClassification", "TOKEN_CLS", {"num_labels": 2}),
    "multimodal": ("AutoModelForImageTextToText", "CAUSAL_LM", {}),
}
"""Class, PEFT's task and settings by method; a causal language model otherwise."""
LANGUAGE_LAYERS = r"(?:.*\.)?language_model\.(?:model\.)?layers\.\d+\.(?:.*\.)?"
"""Beginning of the names of the language model's modules in a model of text and images."""


def open_twin(asked: Asked, base: str) -> nn.Module:
    """Return the model as it is before the first step, but for the weights that train.

    Args:
        asked: the settings.
        base: folder of the base.
    """
    name, task, settings = FORMS.get(asked.method, ("AutoModelForCausalLM", "CAUSAL_LM", {}))
    kind: Any = getattr(transformers, name)
    held = COMPUTED_IN[asked.precision] if asked.adapter_trains else torch.float32
    transformers.logging.set_verbosity_error()
    model: Any = kind.from_pretrained(base, dtype=held, **settings)
    if asked.method == "qlora":
        for _, layer in arithmetic.rounded_linears(model):
            layer.weight.data = round_to_4_bits(layer.weight, asked)
    if asked.adapter_trains:
        model = _adapt(model, asked, task)
    if has_ranges(asked):
        return _finished(model)
    if asked.precision == "fp8":
        arithmetic.compute_rounded(model, arithmetic.fp8_product)
    if asked.method == "qat":
        arithmetic.compute_rounded(model, arithmetic.int8_product)
    return _finished(model)


def _finished(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.eval()


def _adapt(model: Any, asked: Asked, task: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if asked.settings["adapter"] is not None:
            return PeftModel.from_pretrained(
                model, str(asked.settings["adapter"]), is_trainable=True
            )
        config = LoraConfig(
            r=asked.lora_r,
            lora_alpha=asked.alpha,
            target_modules=_targets(model, asked),
            use_dora=asked.use_dora,
            use_rslora=asked.use_rslora,
            task_type=task,
        )
        return get_peft_model(model, config)


def _targets(model: nn.Module, asked: Asked) -> str | list[str]:
    """Return the names of the linear layers that get an adapter: all but the head, or as asked."""
    wanted = set(asked.lora_target_modules)
    heads = {"lm_head", "score", "classifier"}
    names = [n for n, part in model.named_modules() if isinstance(part, nn.Linear)]
    if asked.method == "multimodal":
        names = [n for n in names if re.match(LANGUAGE_LAYERS, n)]
    if wanted == {"all-linear"}:
        return [n for n in names if n.rpartition(".")[2] not in heads]
    return [n for n in names if n.rpartition(".")[2] in wanted]


def trained_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def put(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    """Write weights into the parameters of the same names, and forget their gradients."""
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
        parameter.grad = None
