"""Attach a LoRA adapter to a clean model, and prove that it is the only thing that trains."""

from __future__ import annotations

import re
import warnings
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from mudpuppy.adapters.clean import require_clean
from mudpuppy.adapters.codes import BASE_TRAINS, NOTHING_TRAINS, TOO_LARGE
from mudpuppy.config import TrainingConfig
from mudpuppy.errors import ConfigError, EngineError, near_names
from mudpuppy.parameters import count_parameters
from mudpuppy.quant.blocks import find_decoder_layers, find_linears

MAX_TRAINABLE_SHARE = 0.9
"""An adapter that trains more of the model than this is no adapter (seed 004: the stub)."""
ADAPTER_MARKS = (".lora_", ".modules_to_save.", ".trainable_tokens_")
"""What the name of a parameter of an adapter holds."""


def attach_adapter(
    model: nn.Module, config: TrainingConfig, task_type: str | None = "CAUSAL_LM"
) -> PeftModel:
    """Attach a fresh LoRA adapter; the base is frozen, the adapter is fp32.

    Raises:
        ConfigError: a target module that the model does not have.
        EngineError: the model is not clean, or the adapter is not what trains afterwards.
    """
    require_clean(model)
    settings = lora_settings(model, config, task_type)
    with warnings.catch_warnings():
        # PEFT only warns where an adapter is stacked or a target is tied; both are damage here.
        for damage in ("Already found a `peft_config`", ".*for a second time", ".*tie_word_emb"):
            warnings.filterwarnings("error", damage, UserWarning)
        # PEFT asks transformers by the old name; it is not our call.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        try:
            adapted = get_peft_model(model, settings)
        except UserWarning as damage:
            raise EngineError(f"PEFT attaches the adapter only with damage: {damage}") from damage
    hold_in_full_precision(adapted)
    require_mergeable(adapted, config)
    verify_adapter(adapted)
    return adapted


def hold_in_full_precision(model: nn.Module) -> None:
    """Hold whatever trains in fp32, in place.

    PEFT does so for the matrices of LoRA, and leaves a head that is trained beside them in the type
    of the base, where fp16 gradients cannot be unscaled (FM42) and bf16 loses small steps.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def require_mergeable(adapted: PeftModel, config: TrainingConfig) -> None:
    """Refuse before the first step what `--merge-lora` could not merge after the last.

    Raises:
        ConfigError: the adapter is on the fused experts of a language model, which the base stores
            expert by expert.
    """
    (settings,) = adapted.peft_config.values()
    if config.merge_lora and settings.task_type == "CAUSAL_LM" and settings.target_parameters:
        named = ", ".join(sorted(settings.target_parameters))
        raise ConfigError(
            [f"--merge-lora: the adapter is on fused experts ({named}), which cannot be merged"],
            hint="leave --merge-lora out, or adapt the attention alone: --lora-target-modules "
            "q_proj k_proj v_proj o_proj",
        )


def lora_settings(
    model: nn.Module, config: TrainingConfig, task_type: str | None = "CAUSAL_LM"
) -> LoraConfig:
    """Return PEFT's settings of a fresh adapter; the model may be without weights.

    Raises:
        ConfigError: a target module that the model does not have.
    """
    targets = _resolve_targets(model, config.lora_target_modules)
    if targets == "all-linear" and task_type == "TOKEN_CLS":
        # PEFT trains these heads whole, and "all-linear" would give them an adapter as well.
        targets = sorted(_linear_names(model) - {"score", "classifier"})
    if config.method == "multimodal":
        targets = language_targets(model, targets)
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.resolved_lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        use_dora=config.use_dora,
        use_rslora=config.use_rslora,
        fan_in_fan_out=_is_transposed(model),
        task_type=task_type,
    )


def _is_transposed(model: nn.Module) -> bool:
    """Return whether the linear layers hold their weights as (in, out), as GPT-2's do."""
    return any(isinstance(part, Conv1D) for part in model.modules())


def _resolve_targets(model: Any, wanted: tuple[str, ...]) -> str | list[str]:
    """Return PEFT's target setting, after checking that every name exists in the model."""
    if wanted == ("all-linear",):
        return "all-linear"
    head = model.get_output_embeddings()
    heads = [name for name, part in model.named_modules() if part is head and head is not None]
    if any(name.rpartition(".")[2] in wanted for name in heads):
        # TRL computes the loss from the head's weight alone, so an adapter there never trains.
        raise ConfigError(
            [f"--lora-target-modules: an adapter on the head ({heads[0]}) cannot be trained"],
            hint="leave it out",
        )
    linear = _linear_names(model)
    missing = [name for name in wanted if name.rpartition(".")[2] not in linear]
    if missing:
        raise ConfigError(
            [
                f"--lora-target-modules: the model has no linear module '{name}'"
                f"{near_names(name, linear)}; it has {', '.join(sorted(linear))}"
                for name in missing
            ]
        )
    return list(wanted)


def language_targets(model: nn.Module, wanted: str | list[str]) -> str | list[str]:
    """Keep an adapter to the language model: the vision tower and its projector stay frozen.

    Args:
        model: a model of text and images.
        wanted: PEFT's target setting; names with a dot in them are taken as they are.

    Returns:
        A regular expression over the full names of the linear layers of the decoder blocks.

    Raises:
        ConfigError: no layer of the language model has one of the names.
    """
    if not isinstance(wanted, str) and any("." in name for name in wanted):
        return wanted
    stack = find_decoder_layers(model)
    names = {name.rpartition(".")[2] for name in find_linears(stack.layers, stack.name)}
    chosen = sorted(names if wanted == "all-linear" else names & set(wanted))
    if not chosen:
        raise ConfigError(
            ["--lora-target-modules: no layer of the language model has such a name"],
            hint=f"it has {', '.join(sorted(names))}; a dotted name reaches the vision tower",
        )
    return rf"{re.escape(stack.name)}\.\d+\.(?:.*\.)?(?:{'|'.join(chosen)})"


def _linear_names(model: nn.Module) -> set[str]:
    """Return the last parts of the names of all linear modules."""
    return {
        name.rpartition(".")[2]
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear | Conv1D)
    }


def verify_adapter(model: nn.Module) -> None:
    """Check that adapter parameters exist and that nothing else trains.

    Raises:
        EngineError: MP-E03, no adapter parameter; MP-E04, a trainable base parameter; MP-E05, a
            share above the bound.
    """
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    foreign = [name for name in trainable if not any(mark in name for mark in ADAPTER_MARKS)]
    counted = count_parameters(model)
    share = counted.trainable / max(counted.total, 1)
    if not trainable or len(foreign) == len(trainable):
        raise EngineError(
            f"no adapter parameter is trainable ({len(trainable)} trainable tensors, none of them "
            "LoRA): this run would train nothing or the base itself",
            code=NOTHING_TRAINS,
        )
    if foreign:
        raise EngineError(
            f"{len(foreign)} base tensors would be trained beside the adapter, such as "
            f"{foreign[0]}",
            code=BASE_TRAINS,
        )
    if share > MAX_TRAINABLE_SHARE:
        raise EngineError(
            f"the adapter is {share:.0%} of the model's parameters, more than "
            f"{MAX_TRAINABLE_SHARE:.0%}",
            code=TOO_LARGE,
            hint="lower --lora-r",
        )


def adapter_settings(model: Any) -> dict[str, Any]:
    """Return the adapter's own settings for the provenance, as JSON types."""
    (name,) = model.peft_config
    settings = model.peft_config[name]
    return {
        "name": name,
        "r": settings.r,
        "lora_alpha": settings.lora_alpha,
        "target_modules": settings.target_modules
        if isinstance(settings.target_modules, str)
        else sorted(settings.target_modules),
    }
