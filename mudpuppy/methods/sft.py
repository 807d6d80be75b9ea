"""Supervised fine-tuning (full, LoRA, QLoRA) on TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import SFTConfig, SFTTrainer

from mudpuppy.config import TrainingConfig
from mudpuppy.data.packing import collate_packed
from mudpuppy.data.render import RenderedSample, Renderer, render_all
from mudpuppy.data.samples import Sample
from mudpuppy.loading import Loaded
from mudpuppy.methods.batching import ChunkedLoss, TokenBatches
from mudpuppy.methods.family import Family, TrainerParts
from mudpuppy.methods.fitting import CpuHalfPrecision, configure
from mudpuppy.methods.trainers import width_multiple


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
    return render_all(make_renderer(loaded, config), samples, str(config.dataset))


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


FAMILY = Family(render=render, make_trainer=make_trainer)
"""Full fine-tuning, LoRA and QLoRA."""
