"""TrainingConfig: one frozen set of settings; its fields are the CLI flags and the YAML keys.

Precedence: flags over the file given with `--config` over the defaults here. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from mudpuppy.errors import ConfigError, UnsupportedCombination, clip, near_names, shown
from mudpuppy.rules import ADAPTER_METHODS, Decision, decide

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""A number of steps, passes or samples; beyond the bound only mistyped ones lie."""
Size = Annotated[int, Field(ge=1, le=65_536)]
"""A number that memory is proportional to."""
Fraction = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4095
"""What Linux takes for a name and for a path."""
LORA_LEARNING_RATE = 2e-4
"""Default for adapters (seed 002, "Recommended Settings")."""
FULL_LEARNING_RATE = 2e-5
"""Default for full fine-tuning (TRL's own default)."""


class TrainingConfig(BaseModel):
    """The settings of one training run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """Model to start from: a folder, a hub id, or `tiny` (the embedded model)."""
    dataset: Path
    """Chat data: a JSONL file with `{"messages": [{"role": ..., "content": ...}, ...]}` a line."""
    output: Path
    """Folder for the result; must be new or empty."""

    method: Literal["full", "lora", "qlora", "gptq"] = "lora"
    """What is trained: all weights, an adapter, an adapter on a 4-bit base, or (gptq) nothing:
    the model is quantised after calibration."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Precision of the computation; master weights and adapters stay fp32."""

    epochs: Annotated[Rate, Field(le=1_000_000)] = 3.0
    """Passes over the training samples, unless max_steps is given."""
    max_steps: Count | None = None
    """Optimizer steps to take; overrides epochs."""
    batch_size: Size = 4
    """Samples per device and forward pass."""
    gradient_accumulation: Count = 1
    """Forward passes per optimizer step."""
    learning_rate: Rate | None = None
    """Peak learning rate; by default 2e-4 for adapters and 2e-5 for full fine-tuning."""
    lr_scheduler: Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant"] = (
        "linear"
    )
    """How the learning rate falls after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """Optimizer steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Rate = 1.0
    """Gradients are clipped to this L2 norm."""
    early_stopping: Count | None = None
    """Stop after this many evaluations without a lower loss, and keep the best weights."""
    eval_fraction: Fraction = 0.1
    """Share of the samples held out for evaluation (used when early_stopping is on)."""
    eval_steps: Count = 10
    """Optimizer steps between evaluations."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    stream: bool = False
    """Keep the layers on the host and bring each to the device for its forward and backward."""

    lora_r: Size = 16
    """Rank of the adapter."""
    lora_alpha: Size | None = None
    """Scaling numerator of the adapter (the update is scaled by alpha / r); by default 2 r."""
    lora_dropout: Fraction = 0.0
    """Dropout on the adapter's input."""
    lora_target_modules: tuple[str, ...] = ("all-linear",)
    """Names of the linear modules that get an adapter; all-linear means all but the head."""
    merge_lora: bool = False
    """Also fold the adapter into the base and save the model in OUTPUT/merged."""

    quant_block_size: Size = 64
    """Weights that share one 4-bit scale (qlora)."""
    gptq_bits: Literal[4] = 4
    """Bits a weight (gptq)."""
    gptq_group_size: Size = 128
    """Input channels that share one scale (gptq)."""
    calibration_samples: Count = 64
    """Samples used to calibrate (gptq)."""

    max_length: Annotated[int, Field(ge=8, le=16_777_216)] = 1024
    """Tokens of a sample that are kept."""
    chat_template: bool = True
    """Render samples with the tokenizer's chat template, when it has one."""
    response_only: bool = True
    """Compute the loss on the assistant's tokens only."""
    trust_remote_code: bool = False
    """Run Python code that the model repository brings along."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of every random number generator."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; cuda also means ROCm, as in torch."""

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Return the names of all settings, in the order they are documented."""
        return tuple(cls.model_fields)

    @property
    def resolved_learning_rate(self) -> float:
        """The learning rate that will be used."""
        if self.learning_rate is not None:
            return self.learning_rate
        return LORA_LEARNING_RATE if self.trains_adapter else FULL_LEARNING_RATE

    @property
    def resolved_lora_alpha(self) -> int:
        """The adapter's alpha that will be used."""
        return 2 * self.lora_r if self.lora_alpha is None else self.lora_alpha

    @property
    def trains_adapter(self) -> bool:
        """Whether the method trains an adapter beside frozen weights."""
        return self.method in ADAPTER_METHODS

    @property
    def features(self) -> frozenset[str]:
        """The features that are on, by their names in the rule table."""
        asked = {
            "streaming": self.stream,
            "gradient-checkpointing": self.gradient_checkpointing,
            "early-stopping": self.early_stopping is not None,
            "lr-scheduler": self.lr_scheduler != "linear",
            "merge-lora": self.merge_lora,
            "no-evaluation": self.eval_fraction == 0.0,
        }
        return frozenset(name for name, is_on in asked.items() if is_on)

    def decide(self) -> Decision:
        """Look this configuration up in the rule table."""
        return decide(self.method, self.precision, self.features)

    @field_validator("*", mode="before")
    @classmethod
    def refuse_switches_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is meant: pydantic would read them as 1 and 0."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not bool:
            raise ValueError("a number or a text is expected, not true or false")
        return value

    @field_validator("model", "dataset", "output", mode="before")
    @classmethod
    def expand_home(cls, value: Any) -> Any:
        """Let `~` stand for the home folder wherever a path comes from; refuse what is no path."""
        if not isinstance(value, str | Path):
            return value
        text = str(value) if isinstance(value, Path) else value
        fault = _path_fault(text)
        if fault:
            raise ValueError(fault)
        try:
            return str(Path(text).expanduser()) if text.startswith("~") else value
        except RuntimeError:
            raise ValueError("there is no such home folder") from None


def _path_fault(text: str) -> str:
    """Return what keeps a text from being a path, or nothing."""
    if not text:
        return "is empty"
    if "\0" in text:
        return "a path cannot hold a NUL character"
    try:
        parts = text.encode("utf-8").split(b"/")
    except UnicodeEncodeError:
        return "is not UTF-8"
    if max(map(len, parts)) > MAX_NAME_BYTES:
        return f"a name is longer than {MAX_NAME_BYTES} bytes"
    return f"is longer than {MAX_PATH_BYTES} bytes" if len(text) > MAX_PATH_BYTES else ""


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
        lines = [f"{rule.code} {rule.name}: {rule.reason}" for rule in decision.rejections]
        raise UnsupportedCombination(
            "this combination is rejected\n  " + "\n  ".join(lines),
            codes=[rule.code for rule in decision.rejections],
            hint="; ".join(rule.hint for rule in decision.rejections),
        )
    return config


def check_values(
    values: Mapping[str, Any], *, name: Callable[[str], str] = quote
) -> TrainingConfig:
    """Check each value by itself, as `load_config` does, without the rule table.

    Raises:
        ConfigError: unknown, missing or wrong values, all of them.
    """
    try:
        config = TrainingConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_explain(error, name)) from None
    if config.max_steps is not None:
        check_warmup(config, config.max_steps, name=name)
    return config


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
