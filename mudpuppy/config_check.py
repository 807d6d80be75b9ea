"""Check settings: every problem at once, each named as the person wrote it. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mudpuppy.config import TrainingConfig
from mudpuppy.errors import ConfigError, UnsupportedCombination, clip, near_names, shown
from mudpuppy.features import PREFERENCE_METHODS, QUANT_BLOCK_SIZES, SFT_METHODS
from mudpuppy.presets.loader import load_presets, settings_of

POSITIONAL = ("model", "dataset")
"""Settings that are given by position."""


def flag_of(field: str) -> str:
    """Return what a person types for a setting: `--lora-r`, or `MODEL` for a positional one."""
    return field.upper() if field in POSITIONAL else "--" + field.replace("_", "-")


def quote(field: str) -> str:
    """Return a setting as a key, for messages."""
    return f"'{field}'"


def load_config(values: Mapping[str, Any], *, name: Callable[[str], str] = quote) -> TrainingConfig:
    """Check the values, all problems at once, and the rule table after them.

    Args:
        values: settings by field name.
        name: how a message calls a setting: by its flag, or by its file and key.

    Raises:
        ConfigError: unknown, missing or wrong values.
        UnsupportedCombination: values are fine one by one, and rejected together.
    """
    config = check_values(values, name=name)
    decision = config.decide()
    if not decision.accepted:
        lines = [
            f"{rule.code} {rule.name}: {rule.reason_for(config.method)}"
            for rule in decision.rejections
        ]
        raise UnsupportedCombination(
            "this combination is rejected\n  " + "\n  ".join(lines),
            codes=[rule.code for rule in decision.rejections],
            hint="; ".join(rule.hint for rule in decision.rejections),
        )
    return config


CHECKED_TOGETHER = (
    *("method", "preference", "use_peft", "max_steps", "warmup_steps", "batch_size"),
    *("gradient_accumulation", "num_generations", "reward_funcs", "qat_warmup", "qat_freeze"),
    *("quant", "quant_block_size", "quant_search", "chat_template", "system_prompt"),
)
"""Settings whose values `check_values` weighs against each other; every other stands by itself."""


def check_values(
    values: Mapping[str, Any], *, name: Callable[[str], str] = quote
) -> TrainingConfig:
    """Check each value by itself, over those of a preset, without the rule table.

    Raises:
        ConfigError: unknown, missing or wrong values, all of them.
    """
    try:
        config = TrainingConfig.model_validate({**settings_of(values.get("preset")), **values})
    except ValidationError as error:
        raise ConfigError(_explain(error, name)) from None
    problems = list(_method_problems(config, name))
    if problems:
        raise ConfigError(problems)
    if config.max_steps is not None:
        check_warmup(config, config.max_steps, name=name)
    return config


def _method_problems(config: TrainingConfig, name: Callable[[str], str]) -> Iterator[str]:
    """Yield what is wrong with values that are fine for other methods, and an unknown preset."""
    if config.preset is not None and config.preset not in load_presets():
        near = near_names(config.preset, load_presets())
        yield f"{name('preset')}: there is no preset {shown(config.preset)}{near}"
    if config.system_prompt is not None and not config.chat_template:
        yield (
            f"{name('system_prompt')}: the chat template is what says it; leave out "
            f"{name('chat_template')}"
        )
    if config.method == "kto" and config.batch_size < 2:
        yield (
            f"{name('batch_size')}: kto estimates a distance within a batch, and needs 2 samples "
            "or more, got 1"
        )
    if config.method == "qat" and config.qat_warmup >= config.qat_freeze:
        yield (
            f"{name('qat_warmup')}: {config.qat_warmup} is not below {name('qat_freeze')}, "
            f"{config.qat_freeze}: ranges would stand still before anything is rounded"
        )
    yield from _quant_problems(config, name)
    if config.method != "grpo":
        return
    word = os.environ.get("WORLD_SIZE", "1")  # of torchrun and accelerate launch
    processes = int(word) if word.isdecimal() else 1
    if config.batch_size * config.gradient_accumulation * processes % config.num_generations:
        yield (
            f"{name('num_generations')}: the {config.num_generations} answers to a prompt must "
            f"fill a step of {config.batch_size} x {config.gradient_accumulation} answers in "
            f"each of {processes} processes "
            f"({name('batch_size')} x {name('gradient_accumulation')}) evenly"
        )
    if not config.reward_funcs:
        yield (
            f"{name('reward_funcs')}: grpo needs something that rewards answers: exact-match, "
            "length, format, end, or a function of yours as package.module:function"
        )


def _quant_problems(config: TrainingConfig, name: Callable[[str], str]) -> Iterator[str]:
    """Yield what a format fixes, and what was asked for otherwise."""
    if config.quant == "int8" and config.quant_search:
        yield f"{name('quant_search')}: int8 has nothing to search: its levels are fine enough"
    if config.quant != "mxfp4":
        return
    if config.quant_block_size not in (None, QUANT_BLOCK_SIZES["mxfp4"]):
        yield (
            f"{name('quant_block_size')}: mxfp4 has blocks of 32 by definition, got "
            f"{config.quant_block_size}"
        )
    if config.quant_search:
        yield f"{name('quant_search')}: mxfp4 has nothing to search: it tries both of its scales"


_READ_BY = {
    "beta": (*PREFERENCE_METHODS, "grpo", *SFT_METHODS),
    **dict.fromkeys(
        ("reward_funcs", "num_generations", "max_completion_length", "temperature"), ("grpo",)
    ),
    **dict.fromkeys(
        ("qat_activations", "qat_ranges", "qat_momentum", "qat_warmup", "qat_freeze"), ("qat",)
    ),
    **dict.fromkeys(("gptq_bits", "gptq_group_size", "gptq_act_order"), ("gptq",)),
    **dict.fromkeys(("gptq_static_groups", "gptq_asymmetric", "gptq_damping"), ("gptq",)),
    **dict.fromkeys(("gptq_clip", "gptq_activation_memory", "gptq_backend"), ("gptq",)),
    "calibration_samples": ("gptq",),
}
"""Settings that only some methods read."""
_OF_AN_ADAPTER = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
_OF_EVALUATION = ("eval_fraction", "eval_steps")
_OF_A_FRESH_ADAPTER = ("lora_r", "lora_alpha", "lora_target_modules")


def unread_settings(config: TrainingConfig) -> tuple[str, ...]:
    """Return the settings that were given and that this run does not read, by field name."""
    unread = {name for name, methods in _READ_BY.items() if config.method not in methods}
    if config.method in SFT_METHODS and config.unlearn != "npo":
        unread.add("beta")
    if config.unlearn == "none":
        unread.add("unlearn_weight")
    if not config.trains_adapter:
        unread.update(_OF_AN_ADAPTER)
    if config.adapter is not None:
        unread.update(_OF_A_FRESH_ADAPTER)
    if config.early_stopping is None:
        unread.update(_OF_EVALUATION)
    if config.qat_activations != "tensor":
        unread.add("qat_momentum")
    if config.precision != "fp8":
        unread.add("fp8_scaling")
    if config.precision != "fp8" or config.fp8_scaling != "delayed":
        unread.add("fp8_window")
    if config.tokens_per_batch is not None:
        unread.add("batch_size")
    if config.max_steps is not None:
        unread.add("epochs")
    if not config.gptq_act_order:
        unread.add("gptq_static_groups")
    if config.gptq_backend != "mudpuppy":
        unread.add("gptq_activation_memory")
    if not config.stream:
        unread.add("stream_layers")
    given = {name for name in config.model_fields_set if not is_of_preset(name, config)}
    return tuple(name for name in config.field_names() if name in unread & given)


def is_of_preset(field: str, config: TrainingConfig) -> bool:
    """Return whether a setting is as the preset of the run has it."""
    settings = settings_of(config.preset)
    if field not in settings:
        return False
    held, value = settings[field], getattr(config, field)
    return bool(value == (tuple(held) if isinstance(held, list) else held))


def check_warmup(
    config: TrainingConfig, num_steps: int, *, name: Callable[[str], str] = quote
) -> None:
    """Refuse a warm-up that never ends: the learning rate would stay below what was asked for.

    Raises:
        ConfigError: it is as long as the run, or longer.
    """
    if config.warmup_steps >= num_steps:
        problem = f"{config.warmup_steps} warm-up steps are not fewer than the {num_steps} steps"
        raise ConfigError(
            [f"{name('warmup_steps')}: {problem} of the run"],
            hint="lower it, or train for more steps",
        )


def _advice(item: ErrorDetails) -> str:
    """Return what to write instead, where one mistake is likely."""
    if item["loc"] == ("early_stopping",) and isinstance(item["input"], bool):
        return "; write the number of evaluations to wait, such as early_stopping: 3"
    return ""


def _explain(error: ValidationError, name: Callable[[str], str]) -> list[str]:
    """Turn pydantic's errors into sentences that name the setting as the person wrote it."""
    problems = []
    for item in error.errors():
        field = str(item["loc"][0]) if item["loc"] else ""
        if item["type"] == "extra_forbidden":
            near = near_names(field, TrainingConfig.field_names())
            problems.append(f"{name(field).replace(field, clip(field))} is no known setting{near}")
        elif item["type"] == "missing":
            problems.append(f"{name(field)} is required")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            problems.append(f"{name(field)}: {reason}, got {shown(item['input'])}{_advice(item)}")
    return problems
