"""What a training run writes down: numbers, no opinions (standard library only)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

RUN_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A value the engine chose itself, together with the reason."""

    value: str
    """What was chosen, such as `cpu` or `bf16`."""
    reason: str
    """Why, in one sentence that can be printed."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step, or one evaluation, as it is written to `steps.jsonl`."""

    step: int
    """Optimizer steps finished, counted from 1."""
    epoch: float
    """Epochs of the training set finished."""
    loss: float | None = None
    """Mean negative log-likelihood per trained token, in nats."""
    grad_norm: float | None = None
    """L2 norm of all gradients before clipping."""
    learning_rate: float | None = None
    """Learning rate of the first parameter group."""
    eval_loss: float | None = None
    """Mean negative log-likelihood per token on the evaluation set, in nats."""
    reward: float | None = None
    """Mean reward of the generated answers (grpo)."""
    kl: float | None = None
    """Estimated distance to the reference model, in nats (kto; grpo with a beta)."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Further numbers of the method, such as `rewards/margins`, by the trainer's names."""
    elapsed_s: float = 0.0
    """Seconds since training started."""


@dataclass(frozen=True, kw_only=True)
class LabelShares:
    """What the model was really taught, counted on the prepared training samples."""

    samples: int
    """Training samples."""
    tokens: int
    """Tokens of all samples, without padding."""
    trained_tokens: int
    """Tokens whose label is not -100."""
    eos_tokens: int
    """Trained tokens that end a turn (an EOS id of the tokenizer or the model)."""
    samples_ending_in_eos: int
    """Samples whose last trained token is an EOS id."""
    truncated: int
    """Samples cut at `max_length`."""
    dropped: int = 0
    """Samples left out because nothing within `max_length` would be trained."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The whole run, as it is written to `run.json` and inside `mudpuppy.json`."""

    schema_version: int = RUN_SCHEMA_VERSION
    """Version of this form; a change that breaks a reader raises it."""
    method: str
    """Training method, such as `lora`."""
    precision: str
    """Precision that was used: fp32, bf16 or fp16."""
    output: str
    """Folder of the artefact."""
    merged: str | None = None
    """Folder of the merged model, when one was asked for."""
    steps: int
    """Optimizer steps done (0 for post-training quantisation)."""
    stopped_early: bool = False
    """Whether early stopping ended the run."""
    first_loss: float | None = None
    """Loss of the first step, in nats per token."""
    final_loss: float | None = None
    """Loss of the last step, in nats per token."""
    eval_loss: float | None = None
    """Last evaluation loss, in nats per token."""
    learnt_nothing: bool = False
    """Whether no step had a gradient that was finite and not zero."""
    trainable_parameters: int = 0
    """Parameters that the optimizer updates."""
    total_parameters: int = 0
    """Parameters of the model as trained, adapters included."""
    labels: LabelShares | None = None
    """Counts over the prepared labels; absent where nothing is trained."""
    choices: dict[str, Choice] = field(default_factory=dict)
    """Device, precision and the like, each with its reason."""
    quantisation: dict[str, Any] = field(default_factory=dict)
    """Scheme, bits, block size and per-layer errors of a quantised model."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The trainer's own figures by its names, such as `train_runtime` and `eval_loss`."""
    train_s: float = 0.0
    """Seconds inside the trainer."""
    total_s: float = 0.0
    """Seconds from the start of `train()` to the finished artefact."""
    peak_rss_bytes: int = 0
    """Peak resident memory of the process."""
    peak_device_bytes: int = 0
    """Peak memory of the accelerator; 0 on a CPU."""
    predicted_bytes: dict[str, int] = field(default_factory=dict)
    """What was predicted for the training step, in bytes on the device, by part; on a CPU the
    device is the host."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        return asdict(self)
