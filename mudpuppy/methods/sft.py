"""Supervised fine-tuning (full, LoRA, QLoRA) on TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from mudpuppy.config import TrainingConfig
from mudpuppy.data.packing import collate_packed
from mudpuppy.data.render import RenderedSample, Renderer, render_all
from mudpuppy.data.render_groups import GroupRenderer
from mudpuppy.data.samples import Sample
from mudpuppy.loading import Loaded
from mudpuppy.methods.batching import ChunkedLoss, TokenBatches
from mudpuppy.methods.family import Family, TrainerParts
from mudpuppy.methods.fitting import CpuHalfPrecision, configure
from mudpuppy.methods.group_loss import (
    GroupCollator,
    GroupObjective,
    choose_reference,
    make_reference,
    weighs_groups,
)
from mudpuppy.methods.trainers import LeavesNoReference, width_multiple
from mudpuppy.records import Choice


class MixedPrecisionSFTTrainer(
    CpuHalfPrecision,
    TokenBatches,
    ChunkedLoss,
    SFTTrainer,  # type: ignore[misc]  # TRL ships no types
):
    """SFTTrainer with batches by tokens, a fast loss without Triton, and fp16 on a CPU."""


def render(
    loaded: Loaded, samples: Sequence[Sample], config: TrainingConfig
) -> list[RenderedSample]:
    """Tokenise and label the samples with the model's chat template.

    Raises:
        DatasetError: the template refuses a sample, or nothing is left to train.
        ModelError: the template does not end.
    """
    renderer = make_renderer(loaded, config)
    if not weighs_groups(config):
        return render_all(renderer, samples, str(config.dataset))
    groups = GroupRenderer(plain=renderer, forgets=config.unlearn != "none")
    return render_all(groups, samples, str(config.dataset))


def make_renderer(loaded: Loaded, config: TrainingConfig) -> Renderer:
    """Return the renderer for a model and the settings."""
    return Renderer(
        tokenizer=loaded.tokenizer,
        eos_ids=loaded.eos_ids,
        use_template=config.chat_template and bool(loaded.tokenizer.chat_template),
        response_only=config.response_only,
        max_length=config.max_length,
    )


def make_trainer(parts: TrainerParts) -> Any:
    """Make TRL's trainer for rows that are tokenised and labelled already."""
    if weighs_groups(parts.config):
        return make_group_trainer(parts)
    trainer = MixedPrecisionSFTTrainer(
        model=parts.model,
        args=configure(
            SFTConfig,
            parts.arguments,
            max_length=parts.config.max_length,
            dataset_kwargs={"skip_prepare_dataset": True},
            pad_to_multiple_of=width_multiple(parts.config),
        ),
        train_dataset=parts.train,
        eval_dataset=parts.held_out,
        processing_class=parts.loaded.tokenizer,
        callbacks=parts.callbacks,
        data_collator=collate_packed if parts.config.packing else None,
    )
    trainer.take_batches(parts.batches)
    trainer.chunk_loss()
    return trainer


class GroupSFTTrainer(
    GroupObjective,
    LeavesNoReference,
    MixedPrecisionSFTTrainer,
):
    """The same trainer with another loss: rows are forgotten, or held near a reference."""


def make_group_trainer(parts: TrainerParts) -> Any:
    """Make the trainer for rows that are marked as forgotten or kept.

    Raises:
        ModelError: the model adds a loss of its own to that of the tokens.
    """
    config = parts.config
    reference = make_reference(parts)
    padding = DataCollatorForLanguageModeling(
        pad_token_id=parts.loaded.tokenizer.pad_token_id,
        pad_to_multiple_of=width_multiple(config),
    )
    trainer = GroupSFTTrainer(
        model=parts.model,
        args=configure(
            SFTConfig,
            parts.arguments,
            max_length=config.max_length,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
        ),
        train_dataset=parts.train,
        eval_dataset=parts.held_out,
        processing_class=parts.loaded.tokenizer,
        callbacks=parts.callbacks,
        data_collator=collate_packed if config.packing else GroupCollator(padding),
    )
    trainer.take_batches(parts.batches)
    trainer.weigh_groups(config, reference)
    return trainer


def choose(loaded: Loaded, config: TrainingConfig) -> dict[str, Choice]:
    """Say what the trained model is compared with, where it is compared with anything."""
    return choose_reference(loaded, config) if weighs_groups(config) else {}


FAMILY = Family(render=render, make_trainer=make_trainer, choose=choose)
"""Full fine-tuning, LoRA and QLoRA."""
