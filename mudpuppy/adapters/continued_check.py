"""Read the settings of an adapter that a run continues, and refuse what cannot be. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mudpuppy.adapters.adapter_files import MAX_NAME_CHARS, SETTINGS_FILE, read_adapter_settings
from mudpuppy.adapters.merge_inputs import SCHEMES
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import flag_of
from mudpuppy.errors import ConfigError, ModelError, shown
from mudpuppy.patterns import MAX_STEPS, worst_steps
from mudpuppy.provenance import read_provenance

SAME_SETTINGS = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "use_dora": "use_dora",
    "use_rslora": "use_rslora",
}
"""Settings of a run, and what an adapter's own settings call them."""
TASKS = {"rm": "SEQ_CLS", "prm": "TOKEN_CLS"}
"""PEFT's name of the task of the methods that train no language model."""
METHODS = {task: method for method, task in TASKS.items()}

_Rank = Annotated[int, Field(ge=1, le=1 << 20)]
_Scale = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Names = str | list[str] | None


class _Settings(BaseModel):
    """The types that PEFT takes for granted; what it does not list is left to PEFT."""

    model_config = ConfigDict(strict=True, extra="ignore")

    r: _Rank = 8
    lora_alpha: _Scale = 8
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: _Names = None
    exclude_modules: _Names = None
    target_parameters: list[str] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: _Names = None
    bias: Literal["none", "all", "lora_only"] = "none"
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Scale] | None = None
    # the other ways change the base as well, or need what the base was made with
    init_lora_weights: bool | Literal["gaussian", "eva", "orthogonal"] = True
    use_dora: bool = False
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    lora_bias: bool = False
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    task_type: str | None = None


def require_continuable(folder: Path, config: TrainingConfig) -> dict[str, Any]:
    """Return the settings of the adapter in `folder`, which the run may continue.

    Args:
        folder: as PEFT saves it; mudpuppy.json is looked for beside its files.
        config: the run's settings.

    Raises:
        ModelError: it is no LoRA adapter, its settings are damaged, it was trained for another
            task, or on weights that were quantised in another way.
        ConfigError: the run asks for another rank, scale, kind or other targets.
    """
    settings = read_adapter_settings(folder)
    _require_types(folder, settings)
    _require_same_task(folder, settings, config)
    _require_same_settings(folder, settings, config)
    _require_same_quantisation(folder, config)
    return settings


def _require_types(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse values that PEFT would fail on, or take for something else."""
    hint = f"mend {SETTINGS_FILE}, or take the adapter from where it was trained"
    try:
        known = _Settings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise ModelError(
            f"{folder}: {SETTINGS_FILE}: {key} is {shown(settings.get(key))}: {first['msg']}",
            hint=hint,
        ) from None
    wholes = [one for one in (known.target_modules, known.exclude_modules) if isinstance(one, str)]
    keys = [*(known.rank_pattern or {}), *(known.alpha_pattern or {})]
    for pattern in [*wholes, *keys]:
        try:
            re.compile(pattern)
            # of one that chooses modules PEFT itself makes long alternatives
            if pattern in keys and worst_steps(pattern, MAX_NAME_CHARS) > MAX_STEPS:
                raise ValueError("it may take too long")
        except (ValueError, IndexError, re.error, RecursionError, OverflowError) as error:
            raise ModelError(
                f"{folder}: {SETTINGS_FILE}: the pattern {shown(pattern)} cannot be used: {error}",
                hint=hint,
            ) from None


def _require_same_task(folder: Path, settings: dict[str, Any], config: TrainingConfig) -> None:
    """Refuse an adapter of a language model for a reward model, and the other way round."""
    found = settings.get("task_type") or "CAUSAL_LM"
    expected = TASKS.get(config.method, "CAUSAL_LM")
    if found != expected:
        method = METHODS.get(found, "lora")
        raise ModelError(
            f"the adapter in {folder} is for the task {shown(found)}, and --method "
            f"{config.method} trains {expected}",
            hint=f"continue it with --method {method}, or train a fresh one without --adapter",
        )


def _require_same_settings(folder: Path, settings: dict[str, Any], config: TrainingConfig) -> None:
    """Refuse settings that were asked for and are not the adapter's."""
    asked = config.model_dump(include=config.model_fields_set & {*SAME_SETTINGS})
    problems = [
        f"{flag_of(name)} is {value}, and the adapter in {folder} has {settings.get(own)}"
        for name, value in asked.items()
        if value is not None and settings.get(own := SAME_SETTINGS[name]) != value
    ]
    targets = settings.get("target_modules")
    if "lora_target_modules" in config.model_fields_set and isinstance(targets, list):
        wanted = sorted(config.lora_target_modules)
        if wanted not in (sorted(targets), ["all-linear"]):
            problems.append(
                f"--lora-target-modules is {' '.join(wanted)}, and the adapter in {folder} has "
                f"{' '.join(sorted(targets))}"
            )
    if problems:
        raise ConfigError(problems, hint="leave the setting out: the adapter's own is used")


def _require_same_quantisation(folder: Path, config: TrainingConfig) -> None:
    """Refuse to go on over other weights than the 4-bit ones that the adapter was trained on."""
    try:
        said = (read_provenance(folder) or {}).get("quantisation")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder}: mudpuppy.json cannot be read: {error}") from None
    if not isinstance(said, dict) or not said:
        return
    then = (said.get("scheme"), said.get("block_size"), said.get("search", 0))
    now = (
        next((name for name, form in SCHEMES.items() if form == config.resolved_quant), None),
        config.resolved_quant_block_size,
        config.quant_search,
    )
    if config.method == "qlora" and now == then:
        return
    name = SCHEMES.get(str(then[0]), shown(then[0]))
    words = _in_words(*now) if config.method == "qlora" else "not in 4 bits"
    flags = f"--quant-block-size {shown(then[1])}" + f" --quant-search {then[2]}" * bool(then[2])
    raise ModelError(
        f"the adapter in {folder} was trained on weights in 4 bits, {_in_words(*then)}, and this "
        f"run holds them {words}: they are other weights",
        hint=f"--method qlora --quant {name} {flags}, or merge it first: "
        "mud-puppy merge BASE ADAPTER MERGED",
    )


def _in_words(scheme: Any, block_size: Any, search: Any) -> str:
    form = SCHEMES.get(str(scheme), shown(scheme))
    searched = f" with {shown(search)} scales searched" if search else ""
    return f"as {form} with blocks of {shown(block_size)}{searched}"
