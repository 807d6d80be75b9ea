"""A reward model: one score for a conversation, higher for the better of two answers (TRL's)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from mudpuppy.config import TrainingConfig
from mudpuppy.data.render_pairs import PairRow, render_pairs
from mudpuppy.loading import Loaded, ModelForm, require_known_ids
from mudpuppy.methods.family import Family, TrainerParts
from mudpuppy.methods.fitting import CpuHalfPrecision, configure
from mudpuppy.methods.sft import make_renderer
from mudpuppy.methods.trainers import width_multiple

NEW_HEADS = ("score.", "classifier.", "classification_head.")
"""Beginnings of the names of heads that a base for generation does not have."""


@dataclass(frozen=True, kw_only=True)
class ScoredPair(PairRow):
    """A pair as the reward trainer takes it: both whole, with the prompt in front."""

    def columns(self) -> dict[str, Any]:
        """Return what TRL's reward collator takes."""
        return {
            "chosen_ids": self.prompt_ids + self.chosen_ids,
            "rejected_ids": self.prompt_ids + self.rejected_ids,
        }


class ReadyRowsRewardTrainer(CpuHalfPrecision, RewardTrainer):  # type: ignore[misc]
    """TRL's reward trainer for rows that are tokenised already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def render(loaded: Loaded, samples: Sequence[Any], config: TrainingConfig) -> list[ScoredPair]:
    """Tokenise pairs; the score is read at the EOS of each answer.

    Raises:
        DatasetError: a pair cannot be used, or none is left.
        ModelError: the template does not end, or the tokenizer is larger than the model.
    """
    rows = render_pairs(make_renderer(loaded, config), samples, str(config.dataset))
    require_known_ids(config.model, loaded.model, [row.rejected_ids for row in rows])
    return [ScoredPair(**vars(row)) for row in rows]


def make_trainer(parts: TrainerParts) -> Any:
    """Make TRL's trainer for pairs that are tokenised already."""
    return ReadyRowsRewardTrainer(
        model=parts.model,
        args=configure(
            RewardConfig,
            parts.arguments,
            max_length=None,
            # Otherwise TRL sets the dropout of the adapter to 0 without a word.
            disable_dropout=parts.config.lora_dropout == 0.0,
            pad_to_multiple_of=width_multiple(parts.config),
        ),
        train_dataset=parts.train,
        eval_dataset=parts.held_out,
        processing_class=parts.loaded.tokenizer,
        callbacks=parts.callbacks,
    )


FAMILY = Family(
    render=render,
    make_trainer=make_trainer,
    form=ModelForm(
        auto_class="AutoModelForSequenceClassification",
        new_parameters=NEW_HEADS,
        settings={"num_labels": 1},
        needs_pad=True,
    ),
    task_type="SEQ_CLS",
    learns_to_end=False,
)
"""Reward models."""
