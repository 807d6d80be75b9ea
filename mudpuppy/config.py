"""TrainingConfig: one frozen set of settings; its fields are the CLI flags and the YAML keys.

Precedence: flags over the file given with `--config` over a preset over the defaults. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mudpuppy.features import (
    ADAPTER_BY_DEFAULT,
    METHOD_ALIASES,
    MOST_QUANT_SEARCH,
    QUANT_BLOCK_SIZES,
)
from mudpuppy.path_fault import find_path_fault
from mudpuppy.rules import Decision, decide

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""A number of steps, passes or samples; beyond the bound only mistyped ones lie."""
Size = Annotated[int, Field(ge=1, le=65_536)]
"""A number that memory is proportional to."""
Fraction = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]

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
    """Data to learn from: a JSONL, JSON or Parquet file, or a hub id (docs/data.md)."""
    output: Path
    """Folder for the result; must be new or empty."""
    preset: str | None = None
    """Settings to start from, by name (mud-puppy presets); whatever else is given wins."""

    method: Literal[
        "full",
        "lora",
        "qlora",
        "gptq",
        "qat",
        "dpo",
        "ipo",
        "kto",
        "orpo",
        "grpo",
        "rm",
        "prm",
        "multimodal",
    ] = "lora"
    """What is done: all weights, an adapter, an adapter on a 4-bit base, quantising after
    calibration or with training, preferences, reinforcement, reward models, images."""
    preference: Literal["dpo", "ipo", "kto", "orpo"] | None = None
    """Which one `--method preference` is; the same as naming it with --method."""
    precision: Literal["fp32", "bf16", "fp16", "fp8"] = "bf16"
    """Precision of the computation; master weights and adapters stay fp32."""
    use_peft: bool | None = None
    """Train an adapter instead of all weights; by default for every method but full, gptq, qat."""

    epochs: Annotated[Rate, Field(le=1_000_000)] = 3.0
    """Passes over the training samples, unless max_steps is given."""
    max_steps: Count | None = None
    """Optimizer steps to take; overrides epochs."""
    batch_size: Size = 4
    """Samples per device and forward pass; with packing, rows."""
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
    max_grad_norm: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    """Gradients are clipped to this L2 norm; 0 leaves them as they are."""
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
    stream_layers: Size = 2
    """Layers that streaming holds on the device: one computes while the others come."""
    packing: bool = False
    """Put several samples into one row of max_length tokens, each blind to the others."""
    tokens_per_batch: Annotated[int, Field(ge=8, le=1_000_000_000)] | None = None
    """Fill batches to this many tokens, padding included, instead of counting samples."""
    device_map: Literal["auto", "pipeline", "cpu"] | None = None
    """How layers are spread: over all devices (auto), in equal stages (pipeline), or none (cpu)."""
    zero_offload: bool = False
    """Keep optimizer states on the host and step there."""
    compile: bool = False
    """Compile the model with torch.compile."""
    fsdp: Literal["none", "full_shard"] = "none"
    """Shard weights, gradients and optimizer over the processes of torchrun or accelerate."""
    save_steps: Count | None = None
    """Optimizer steps between checkpoints that resume continues from."""
    resume: bool = False
    """Go on from the newest complete checkpoint in the output folder."""
    num_workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Processes that prepare batches."""
    preprocess_workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Processes that tokenise the samples."""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where numbers are written beside steps.jsonl; W&B works offline."""

    lora_r: Size = 16
    """Rank of the adapter."""
    lora_alpha: Size | None = None
    """Scaling numerator of the adapter (the update is scaled by alpha / r); by default 2 r."""
    lora_dropout: Fraction = 0.0
    """Dropout on the adapter's input."""
    lora_target_modules: tuple[str, ...] = ("all-linear",)
    """Names of the linear modules that get an adapter; all-linear means all but the head."""
    use_dora: bool = False
    """Learn direction and magnitude apart (DoRA, Liu et al. 2024)."""
    use_rslora: bool = False
    """Scale by alpha over the root of the rank (rsLoRA, Kalajdzievski 2023)."""
    adapter: Path | None = None
    """An adapter folder to train on, instead of a fresh adapter."""
    merge_lora: bool = False
    """Also fold the adapter into the base and save the model in OUTPUT/merged."""
    merge_precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Type of the merged model; by default that of the computation."""

    beta: Rate | None = None
    """Weight of the distance to the reference (preference, grpo, npo); by default TRL's, or 0.1."""
    unlearn: Literal["none", "gradient-ascent", "npo"] = "none"
    """How rows marked unlearn are forgotten; none learns what they say (full, lora, qlora)."""
    unlearn_weight: Rate = 1.0
    """Weight of the rows that are forgotten beside those that are kept (unlearn)."""
    retain_kl: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    """Weight of the distance to the untrained model on rows that are kept (full, lora, qlora)."""
    reward_funcs: tuple[str, ...] = ()
    """What rewards an answer (grpo): built-in names, or `package.module:function`."""
    num_generations: Annotated[int, Field(ge=2, le=1024)] = 4
    """Answers that are generated for each prompt (grpo)."""
    max_completion_length: Annotated[int, Field(ge=1, le=1_048_576)] = 128
    """Tokens that an answer may have (grpo)."""
    temperature: Rate = 1.0
    """Temperature of the generated answers (grpo)."""

    quant: Literal["nf4", "int4", "mxfp4", "int8"] | None = None
    """How the frozen base is held in 4 bits, or in 8 (qlora); by default nf4."""
    quant_block_size: Size | None = None
    """Weights that share one scale (qlora); by default 64, and always 32 in mxfp4."""
    quant_search: Annotated[int, Field(ge=0, le=MOST_QUANT_SEARCH)] = 0
    """Scales to try for every block, off by default; 16 lower nf4's error by 7 % (qlora)."""
    kernels: Literal["auto", "off"] = "auto"
    """Use compiled kernels where they pass their self-test, or PyTorch alone (qlora)."""
    gptq_bits: Literal[2, 3, 4, 8] = 4
    """Bits a weight (gptq)."""
    gptq_group_size: Annotated[int, Field(ge=-1, le=65_536)] = 128
    """Input channels that share one scale, -1 for all of a row (gptq)."""
    gptq_act_order: bool = True
    """Round the columns with the largest inputs first (gptq)."""
    gptq_static_groups: bool = True
    """With act-order, keep neighbours in a group; otherwise the files say desc_act (gptq)."""
    gptq_asymmetric: bool = False
    """Choose a zero point for every group instead of the middle level (gptq)."""
    gptq_damping: Fraction = 0.01
    """Share of the Hessian's mean diagonal that is added to it; grows while it fails (gptq)."""
    gptq_clip: Literal["none", "mse"] = "none"
    """Span all weights of a group, or what leaves the least squared error (gptq)."""
    gptq_activation_memory: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 4.0
    """GiB of the samples' hidden states kept in memory; the others lie in files (gptq)."""
    gptq_backend: Literal["mudpuppy", "gptqmodel"] = "mudpuppy"
    """Whose GPTQ runs; GPTQModel's needs its package and a CUDA device (gptq)."""
    calibration_samples: Count = 64
    """Samples used to calibrate (gptq)."""

    qat_activations: Literal["token", "tensor"] = "token"
    """Inputs that share an int8 scale: those of a token, measured as they come, or all (qat)."""
    qat_ranges: Literal["observed", "learned"] = "observed"
    """How int8 scales are found: from the largest values, or as parameters (LSQ) (qat)."""
    qat_momentum: Fraction = 0.9
    """Share of an observed range of inputs that stays when a step ends (qat, tensor)."""
    qat_warmup: Fraction = 0.0
    """Share of the steps before rounding begins (qat)."""
    qat_freeze: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the steps after which ranges stay as they are (qat); 1 for never."""
    fp8_scaling: Literal["current", "delayed"] = "current"
    """What fp8 scales follow: each tensor, or the largest value of the steps before (fp8)."""
    fp8_window: Size = 16
    """Steps whose largest value delayed scales remember (fp8)."""

    max_length: Annotated[int, Field(ge=8, le=16_777_216)] = 1024
    """Tokens of a sample that are kept."""
    chat_template: bool = True
    """Render samples with the tokenizer's chat template, when it has one."""
    system_prompt: Annotated[str, Field(min_length=1, max_length=65_536)] | None = None
    """What conversations begin with that have no system message; also for serving the result."""
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
    def resolved_quant(self) -> str:
        """The format that a frozen base is held in."""
        return self.quant or "nf4"

    @property
    def resolved_quant_block_size(self) -> int:
        """The block size of that format that will be used."""
        return self.quant_block_size or QUANT_BLOCK_SIZES[self.resolved_quant]

    @property
    def trains_adapter(self) -> bool:
        """Whether the method trains an adapter beside frozen weights."""
        by_default = self.method in ADAPTER_BY_DEFAULT
        return by_default and self.use_peft is not False

    @property
    def features(self) -> frozenset[str]:
        """The features that are on, by their names in the rule table."""
        return features_of(vars(self))

    def decide(self) -> Decision:
        """Look this configuration up in the rule table."""
        return decide(self.method, self.precision, self.features)

    @model_validator(mode="before")
    @classmethod
    def read_aliases(cls, values: Any) -> Any:
        """Read the other spellings of a method: `preference`, `rl`, `reward`, `process-reward`."""
        word = values.get("method") if isinstance(values, dict) else None
        if not isinstance(word, str) or word not in METHOD_ALIASES:
            return values
        which = values.get("preference") if values["method"] == "preference" else None
        return {**values, "method": which or METHOD_ALIASES[values["method"]]}

    @field_validator("*", mode="before")
    @classmethod
    def refuse_switches_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is meant: pydantic would read them as 1 and 0."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError("a number or a text is expected, not true or false")
        return value

    @field_validator("preference")
    @classmethod
    def agree_with_method(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Refuse a preference method that is another than the method."""
        method = info.data.get("method")
        if value is not None and method not in (None, value):
            raise ValueError(f"goes with --method preference, and the method is {method}")
        return value

    @field_validator("gptq_bits", mode="before")
    @classmethod
    def read_number(cls, value: Any) -> Any:
        """Read a number that was typed: choices are compared as they are."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("gptq_group_size")
    @classmethod
    def refuse_empty_groups(cls, value: int) -> int:
        """Refuse groups of no channel."""
        if value == 0:
            raise ValueError("is -1 for all channels of a row, or at least 1")
        return value

    @field_validator("use_peft")
    @classmethod
    def refuse_peft_without_adapter(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        """Refuse an adapter for a method that trains the weights of the model itself."""
        method = info.data.get("method")
        if value and method is not None and method not in ADAPTER_BY_DEFAULT:
            raise ValueError(f"the method {method} has no adapter; use --method lora")
        return value

    @field_validator("model", "dataset", "output", "adapter", mode="before")
    @classmethod
    def expand_home(cls, value: Any) -> Any:
        """Let `~` stand for the home folder wherever a path comes from; refuse what is no path."""
        if not isinstance(value, str | Path):
            return value
        text = str(value) if isinstance(value, Path) else value
        fault = find_path_fault(text)
        if fault:
            raise ValueError(fault)
        try:
            return str(Path(text).expanduser()) if text.startswith("~") else value
        except RuntimeError:
            raise ValueError("there is no such home folder") from None


def _is_given(value: Any) -> bool:
    return value is not None


SWITCHES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "streaming": ("stream", bool),
    "gradient-checkpointing": ("gradient_checkpointing", bool),
    "early-stopping": ("early_stopping", _is_given),
    "lr-scheduler": ("lr_scheduler", lambda value: value != "linear"),
    "merge-lora": ("merge_lora", bool),
    "merge-precision": ("merge_precision", _is_given),
    "no-evaluation": ("eval_fraction", lambda value: value == 0.0),
    "full-weights": ("use_peft", lambda value: value is False),
    "dora": ("use_dora", bool),
    "rslora": ("use_rslora", bool),
    "continue-adapter": ("adapter", _is_given),
    "packing": ("packing", bool),
    "tokens-per-batch": ("tokens_per_batch", _is_given),
    "device-map": ("device_map", lambda value: value not in (None, "cpu")),
    "zero-offload": ("zero_offload", bool),
    "compile": ("compile", bool),
    "checkpoints": ("save_steps", _is_given),
    "all-tokens": ("response_only", lambda value: not value),
    "no-chat-template": ("chat_template", lambda value: not value),
    "num-workers": ("num_workers", lambda value: value > 0),
    "preprocess-workers": ("preprocess_workers", lambda value: value > 1),
    "logging": ("report_to", bool),
    "quant": ("quant", _is_given),
    "quant-block-size": ("quant_block_size", _is_given),
    "quant-search": ("quant_search", bool),
    "no-kernels": ("kernels", lambda value: value == "off"),
    "fsdp": ("fsdp", lambda value: value != "none"),
    "static-activations": ("qat_activations", lambda value: value == "tensor"),
    "learned-ranges": ("qat_ranges", lambda value: value == "learned"),
    "delayed-scaling": ("fp8_scaling", lambda value: value == "delayed"),
    "unlearning": ("unlearn", lambda value: value != "none"),
    "retain-kl": ("retain_kl", bool),
}
"""The one setting that each feature is switched on by, and what its value says."""


def features_of(settings: Mapping[str, Any]) -> frozenset[str]:
    """Return the features that are on in checked settings, all of which must be there."""
    return frozenset(name for name, (field, is_on) in SWITCHES.items() if is_on(settings[field]))
