"""Fine-tuning on conversations about images, on TRL's SFTTrainer with a collator of our own.

TRL's collator for images takes the answer's place from `{% generation %}` tags, which the templates
of most models lack; ours takes labels that were made, and can be looked at, before training.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl import SFTConfig

from mudpuppy.config import TrainingConfig
from mudpuppy.data.render import IGNORED, RenderedSample, Renderer, render_all
from mudpuppy.data.render_images import (
    ImageRenderer,
    adds_special_tokens,
    open_rgb,
    template_of,
)
from mudpuppy.data.samples import Sample
from mudpuppy.errors import EngineError
from mudpuppy.loading import Loaded, ModelForm
from mudpuppy.methods.family import Family, TrainerParts
from mudpuppy.methods.fitting import configure
from mudpuppy.methods.sft import MixedPrecisionSFTTrainer
from mudpuppy.methods.trainers import round_up, width_multiple
from mudpuppy.records import Choice

BY_POSITION = ("token_type_ids", "mm_token_type_ids")
"""What processors return for every token beside ids and mask."""


def render(
    loaded: Loaded, samples: Sequence[Sample], config: TrainingConfig
) -> list[RenderedSample]:
    """Process and label the samples; their pixels are made again for each batch.

    Raises:
        DatasetError: an image cannot be opened, or nothing is left to train.
        ModelError: the processor has no chat template, or does not say where it puts images.
    """
    processor = padding_processor(loaded)
    template_of(processor)
    plain = Renderer(
        tokenizer=processor.tokenizer,
        eos_ids=loaded.eos_ids,
        use_template=True,
        response_only=config.response_only,
        max_length=config.max_length,
    )
    renderer = ImageRenderer(processor=processor, plain=plain, file=str(config.dataset))
    return render_all(renderer, samples, str(config.dataset))


def padding_processor(loaded: Loaded) -> Any:
    """Return the processor with the tokenizer that has a pad token; the model's stays as it is."""
    processor = copy.copy(loaded.processor)
    processor.tokenizer = loaded.tokenizer
    return processor


@dataclass(frozen=True, kw_only=True)
class ImageCollator:
    """Opens and processes the images of a batch, and pads its rows on the right."""

    processor: Any
    """A processor whose tokenizer has a pad token."""
    multiple: int | None = None
    """The width of a batch is a multiple of it."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return what the model takes: ids (batch, tokens), labels, mask, and pixels.

        Raises:
            EngineError: an image is another one than when the samples were rendered.
        """
        texts = [row["text"] for row in rows]
        images = [[open_rgb(reference) for reference in row["images"]] for row in rows]
        processed = self.processor(
            text=texts,
            images=images if any(images) else None,
            add_special_tokens=adds_special_tokens(self.processor, texts[0]),
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        made = dict(processed)
        found = made.pop("input_ids").tolist()
        for row, ids in zip(rows, found, strict=True):
            end = row["image_end"]
            if ids[:end] != row["input_ids"][:end]:
                raise EngineError(
                    f"an image was changed while the run was going on: {row['images']}",
                    hint="start again, and leave the images alone",
                )
        pad_id = self.processor.tokenizer.pad_token_id
        width = round_up(max(len(row["input_ids"]) for row in rows), self.multiple)
        made["input_ids"] = _pad([row["input_ids"] for row in rows], width, pad_id)
        made["labels"] = _pad([row["labels"] for row in rows], width, IGNORED)
        made["attention_mask"] = _pad([[1] * len(row["input_ids"]) for row in rows], width, 0)
        for name in BY_POSITION:
            if name in made:
                made[name] = _pad(made[name][:, :width].tolist(), width, 0)
        return made


def _pad(rows: Sequence[list[int]], width: int, value: int) -> Tensor:
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def make_trainer(parts: TrainerParts) -> Any:
    """Make TRL's trainer for rows whose images are opened batch by batch."""
    processor = padding_processor(parts.loaded)
    trainer = MixedPrecisionSFTTrainer(
        model=parts.model,
        args=configure(
            SFTConfig,
            parts.arguments,
            max_length=None,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        data_collator=ImageCollator(processor=processor, multiple=width_multiple(parts.config)),
        train_dataset=parts.train,
        eval_dataset=parts.held_out,
        processing_class=processor,
        callbacks=parts.callbacks,
    )
    trainer.take_batches(parts.batches)
    trainer.chunk_loss()
    return trainer


def choose_part(loaded: Loaded, config: TrainingConfig) -> dict[str, Choice]:
    """Say which part of the model learns."""
    del loaded
    if config.trains_adapter:
        value, reason = "the language model", "the vision tower and its projector stay frozen"
    else:
        value, reason = "the whole model", "--no-use-peft also trains the vision tower"
    return {"trained_part": Choice(value=value, reason=reason)}


FAMILY = Family(
    render=render,
    make_trainer=make_trainer,
    choose=choose_part,
    form=ModelForm(auto_class="AutoModelForImageTextToText", has_processor=True),
)
"""Fine-tuning on conversations about images."""
