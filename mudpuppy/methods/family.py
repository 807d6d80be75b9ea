"""What the engine must know of a method: how samples become rows, and which trainer takes them.

One `Family` a file in this folder; `find_family` picks by `TrainingConfig.method`. What all
trainers share (arguments, the step log, checkpoints) is in `mudpuppy.methods.fitting`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset

from mudpuppy.config import TrainingConfig
from mudpuppy.data.batches import TokenBudgetSampler
from mudpuppy.data.samples import Sample
from mudpuppy.loading import Loaded, ModelForm
from mudpuppy.records import Choice
from mudpuppy.runtime import Runtime


class Row(Protocol):
    """One sample as a model sees it."""

    @property
    def input_ids(self) -> list[int]:
        """Token ids, one a position; of the better answer, where there are two."""

    @property
    def labels(self) -> list[int]:
        """The same ids where something is learnt, -100 elsewhere; not shifted."""

    @property
    def truncated(self) -> bool:
        """Whether tokens were cut off."""

    def columns(self) -> Mapping[str, Any]:
        """Return the columns that the trainer takes."""


@dataclass(frozen=True, kw_only=True)
class TrainerParts:
    """What a trainer is made of."""

    model: Any
    """The model, with its adapter where there is one, on its device."""
    loaded: Loaded
    """The model's surroundings: tokenizer, processor, ids that end a turn."""
    train: Dataset
    """Rows to train on."""
    held_out: Dataset | None
    """Rows to evaluate on, where some are held out."""
    arguments: dict[str, Any]
    """What the trainer's own configuration class takes, as far as all trainers share it."""
    callbacks: list[Any]
    """Callbacks that every trainer gets."""
    config: TrainingConfig
    """The settings."""
    runtime: Runtime
    """Device and precision."""
    batches: TokenBudgetSampler | None = None
    """Which rows make a batch, where batches are filled to a number of tokens."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a method leaves beside the trained model."""

    folder: str
    """Folder inside the output."""
    quantisation: dict[str, Any]
    """Scheme and errors, for the provenance."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of methods."""

    render: Callable[[Loaded, Sequence[Sample], TrainingConfig], list[Any]]
    """Turn samples into rows, leaving out those with nothing to learn.

    Raises DatasetError where a sample cannot be used."""
    make_trainer: Callable[[TrainerParts], Any]
    """Make the trainer."""
    form: ModelForm = field(default_factory=ModelForm)
    """How the base is opened."""
    task_type: str | None = "CAUSAL_LM"
    """PEFT's name of the task."""
    choose: Callable[[Loaded, TrainingConfig], Mapping[str, Choice]] = lambda loaded, config: {}
    """What the method chooses for the model by itself, to be told and recorded."""
    learns_to_end: bool = True
    """Whether rows teach the model to end its answers: a set in which none does is refused."""
    around_fit: Callable[[Any, TrainingConfig, Runtime], AbstractContextManager[Any]] = (
        lambda model, config, runtime: nullcontext()
    )
    """What surrounds the training of a model, such as fake quantisation."""
    export: Callable[[Any, Loaded, Path, TrainingConfig, Runtime], Exported] | None = None
    """Write a further artefact into a staging folder, from the weights as training left them."""


_MODULES = {
    **dict.fromkeys(("full", "lora", "qlora"), "sft"),
    **dict.fromkeys(("dpo", "ipo", "kto", "orpo"), "preference"),
    "gptq": "sft",
    "qat": "qat",
    "grpo": "grpo",
    "rm": "reward",
    "prm": "process_reward",
    "multimodal": "multimodal",
}


def find_family(method: str) -> Family:
    """Return the family of a method; only its own trainer is imported."""
    module: Any = importlib.import_module(f"mudpuppy.methods.{_MODULES[method]}")
    family: Family = module.FAMILY if not hasattr(module, "FAMILIES") else module.FAMILIES[method]
    return family
