"""What all trainers share: arguments, the step log, early stopping, and a model left unpatched."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from mudpuppy import team
from mudpuppy.checkpoints import Identity, Resumable
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import check_warmup, flag_of
from mudpuppy.data.batches import TokenBudgetSampler
from mudpuppy.data.held_out import count_held_out
from mudpuppy.errors import EngineError
from mudpuppy.loading import Loaded
from mudpuppy.methods.batching import arrange, token_batches
from mudpuppy.methods.family import Family, Row, TrainerParts
from mudpuppy.methods.keeping import CheckpointKeeper, EngineTrainer
from mudpuppy.methods.steplog import Report, StepWriter
from mudpuppy.quant.stepping import StepKeeper
from mudpuppy.records import StepRecord
from mudpuppy.runtime import Runtime

T = TypeVar("T")
INPUT_HOOK = "make_inputs_require_grads"
"""transformers' name of the hook that lets gradients through a frozen embedding."""


CpuHalfPrecision = EngineTrainer
"""What every trainer is mixed with, by the name of its first part."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What the trainer did."""

    records: list[StepRecord]
    """Every step and evaluation, in order."""
    stopped_early: bool
    """Whether the run ended before its last planned step."""
    seconds: float
    """Time inside the trainer."""
    metrics: dict[str, float]
    """The trainer's own figures, by its names."""


def fit(
    model: nn.Module,
    family: Family,
    loaded: Loaded,
    rows: Sequence[Row],
    config: TrainingConfig,
    runtime: Runtime,
    *,
    steps_file: Path,
    identity: Identity,
    held_out: Sequence[Row] = (),
    resumed: Resumable | None = None,
    report: Report | None = None,
) -> FitResult:
    """Train the model in place.

    Args:
        model: what is trained.
        family: the family of the method.
        loaded: the model's surroundings.
        rows: the samples as the model sees them.
        config: the settings.
        runtime: device and precision.
        steps_file: where every step is written down.
        identity: what the run is made of, for its checkpoints.
        held_out: rows to evaluate on; without them some of `rows` are, where early stopping asks.
        resumed: the checkpoint to go on from.
        report: called with every step.

    Raises:
        DatasetError: too few samples to hold some out for evaluation.
        ConfigError: the warm-up would not end before the run.
        EngineError: the loss became NaN or infinite.
    """
    parts = (rows, held_out) if held_out else split_samples(rows, config)
    train, held_out = (arrange(part, config) for part in parts)
    batches = token_batches(train, config)
    check_warmup(config, count_steps(len(train), config, batches), name=flag_of)
    writer = StepWriter(
        steps_file,
        report,
        resumed.step if resumed else 0,
        skips_overflow=config.precision == "fp16",
    )
    keeper = CheckpointKeeper(identity, config.save_steps)
    callbacks: list[TrainerCallback] = [writer, StepKeeper(), keeper]
    if config.early_stopping is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=config.early_stopping))
    started = time.monotonic()
    with _unpatched(model):
        trainer = family.make_trainer(
            TrainerParts(
                model=model,
                loaded=loaded,
                train=as_dataset(train),
                held_out=as_dataset(held_out) if held_out else None,
                arguments=shared_arguments(config, runtime, evaluates=bool(held_out)),
                callbacks=callbacks,
                config=config,
                runtime=runtime,
                batches=batches,
            )
        )
        trainer.remove_callback(PrinterCallback)
        trainer.offload = config.zero_offload
        trainer.was_over = resumed is not None and resumed.is_over
        done = trainer.train(resume_from_checkpoint=str(resumed.folder) if resumed else None)
        _require_steps(trainer.state.global_step, len(train), config)
    return FitResult(
        records=writer.records,
        stopped_early=trainer.state.global_step < trainer.state.max_steps,
        seconds=time.monotonic() - started,
        metrics=_figures({**_last_evaluation(trainer.state.log_history), **done.metrics}),
    )


def _last_evaluation(logs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the trainer logged of its last evaluation, or nothing where there was none."""
    return next((one for one in reversed(logs) if "eval_loss" in one), {})


def _figures(logged: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a log, the step apart."""
    return {
        name: float(value)
        for name, value in logged.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def _require_steps(steps: int, num_rows: int, config: TrainingConfig) -> None:
    """Refuse to call a run finished that took no step: its artefact would be the base."""
    if not steps:
        raise EngineError(
            f"no step was taken: {num_rows} samples do not fill a batch of {config.batch_size} in "
            f"each of {team.size()} processes",
            hint="add samples, or lower --batch-size",
        )


def count_steps(
    num_rows: int, config: TrainingConfig, batches: TokenBudgetSampler | None = None
) -> int:
    """Return the optimizer steps that are planned, counted as the trainer counts them."""
    if config.max_steps is not None:
        return config.max_steps
    if batches is not None:
        num_batches = len(batches) // team.size()
    else:
        answers = config.num_generations if config.method == "grpo" else 1
        num_batches = math.ceil(num_rows * answers / (config.batch_size * team.size()))
    return math.ceil(config.epochs * math.ceil(num_batches / config.gradient_accumulation))


def shared_arguments(
    config: TrainingConfig, runtime: Runtime, *, evaluates: bool = False
) -> dict[str, Any]:
    """Translate the settings into what `TrainingArguments` and its descendants take.

    `evaluates` says that there are rows to evaluate on though nothing is to stop early.
    """
    evaluation: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no"}
    if evaluates:
        evaluation |= {"eval_strategy": "steps", "eval_steps": config.eval_steps}
    if config.save_steps is not None:
        evaluation |= {
            "save_strategy": "steps",
            "save_steps": config.save_steps,
            "save_total_limit": 2,
        }
    if config.early_stopping is not None:
        evaluation = {
            "eval_strategy": "steps",
            "eval_steps": config.eval_steps,
            "save_strategy": "steps",
            "save_steps": config.eval_steps,
            "save_total_limit": 2,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
        }
    return {
        "output_dir": str(config.output),
        "max_steps": config.max_steps or -1,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": config.resolved_learning_rate,
        "lr_scheduler_type": config.lr_scheduler,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "fp16": config.precision == "fp16",
        "bf16": runtime.dtype == torch.bfloat16,
        # Streaming recomputes every layer already; twice would only cost time.
        "activation_checkpointing": config.gradient_checkpointing and not config.stream,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "use_cpu": runtime.device.type == "cpu",
        "dataloader_pin_memory": runtime.device.type != "cpu",
        "dataloader_num_workers": config.num_workers,
        "logging_steps": 1,
        "logging_first_step": True,
        # Filtered, a NaN is logged as the mean so far: 0.0 for ever, and nobody stops the run.
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": list(config.report_to),
        "torch_compile": config.compile,
        # Of an image model the part that sees is not used by a batch of text alone.
        # Ranges that are learnt have no gradient before rounding begins and once they are frozen.
        "ddp_find_unused_parameters": config.method == "multimodal"
        or config.qat_ranges == "learned",
        "fsdp": config.fsdp != "none",
        "fsdp_config": {"version": 2, "reshard_after_forward": True},
        # Without it the count of evaluations without a better loss starts anew.
        "restore_callback_states_from_checkpoint": True,
        "seed": config.seed,
        "data_seed": config.seed,
        **evaluation,
    }


def configure(kind: Callable[..., Any], arguments: dict[str, Any], **more: Any) -> Any:
    """Make a trainer's own configuration of the shared arguments and its own."""
    made = kind(**{**arguments, **more})
    # Trainer would wrap the model in nn.DataParallel where it sees several GPUs, and TRL refuses
    # that. The second may well be an integrated GPU that crashes on use (seed 000).
    made._n_gpu = min(made.n_gpu, 1)
    return made


def split_samples(samples: Sequence[T], config: TrainingConfig) -> tuple[list[T], list[T]]:
    """Return training and held-out samples; nothing is held out without early stopping.

    Raises:
        DatasetError: there are fewer than two samples to split.
    """
    held_out = count_held_out(len(samples), config)
    if not held_out:
        return list(samples), []
    order = torch.randperm(
        len(samples), generator=torch.Generator().manual_seed(config.seed)
    ).tolist()
    chosen = set(order[:held_out])
    train = [sample for i, sample in enumerate(samples) if i not in chosen]
    return train, [samples[i] for i in sorted(chosen)]


def as_dataset(rows: Sequence[Row]) -> Dataset:
    """Hand the rows over as the trainer stores them."""
    return Dataset.from_list([dict(row.columns()) for row in rows])


@contextmanager
def _unpatched(model: Any) -> Iterator[None]:
    """Take back what the trainer does to the model beside training it.

    TRL copies the tokenizer's special ids into the model's configs; a pad token that was only set
    for training must not end up in the artefact.
    """
    generation: Any = getattr(model, "generation_config", None)
    found: tuple[Any, ...] = (model.config, model.config.get_text_config(), generation)
    configs = [config for config in found if hasattr(config, "pad_token_id")]
    pads = [config.pad_token_id for config in configs]
    knows_cache = hasattr(model.config, "use_cache")
    try:
        yield
    finally:
        if not knows_cache and hasattr(model.config, "use_cache"):  # the trainer switches it off
            del model.config.use_cache
        for config, pad in zip(configs, pads, strict=True):
            config.pad_token_id = pad
        _remove_patches(model)


def _remove_patches(model: nn.Module) -> None:
    """Delete the `forward` that TRL (fused LM head) and accelerate (autocast) set on the instance.

    Left in place they would go on computing in the training precision, and would be stacked by the
    next trainer. So would the hooks of gradient checkpointing: TRL and the trainer each set them,
    and the model only remembers, and can only take away, those of the last.
    """
    for part in model.modules():
        for key, hook in list(part._forward_hooks.items()):
            if getattr(hook, "__name__", "") == INPUT_HOOK:
                del part._forward_hooks[key]
    parts = [model, model.get_base_model()] if isinstance(model, PeftModel) else [model]
    for part in parts:
        for name in ("forward", "_original_forward"):
            if name in vars(part):
                delattr(part, name)
