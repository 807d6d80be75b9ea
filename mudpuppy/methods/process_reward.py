"""A process reward model: each step of a solution is judged right or wrong where it ends.

TRL 1.16 has no trainer for it, so this is token classification on transformers' own (Lightman et
al. 2023; the layout of TRL's former trainer):

    prompt  separator  step  separator  step  separator
    -100    -100       -100  0 or 1     -100  0 or 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Trainer, TrainingArguments
from trl.trainer.utils import disable_dropout_in_model, pad

from mudpuppy.config import TrainingConfig
from mudpuppy.data.render import IGNORED, control_tokens, leading_bos, refuse_control_token
from mudpuppy.data.samples import StepsSample
from mudpuppy.errors import DatasetError
from mudpuppy.loading import Loaded, ModelForm
from mudpuppy.methods.family import Family, TrainerParts
from mudpuppy.methods.fitting import CpuHalfPrecision, configure
from mudpuppy.methods.reward import NEW_HEADS
from mudpuppy.methods.trainers import LogsMeans, width_multiple
from mudpuppy.records import Choice

SEPARATOR = "\n"
"""Ends the prompt and every step; a step is judged at its last token."""
LABELS = {0: "wrong", 1: "right"}
"""Names of the classes, as `config.json` keeps them."""


@dataclass(frozen=True, kw_only=True)
class StepsRow:
    """A solution as the model sees it."""

    input_ids: list[int]
    """The prompt and the steps, each ended by the separator."""
    judged: list[int]
    """1 or 0 where a right or a wrong step ends, -100 elsewhere."""
    truncated: bool
    """Whether steps at the end were left out."""
    line: int
    """1-based line, or row, of the file it came from."""

    @property
    def labels(self) -> list[int]:
        """The ids at which a step is judged, -100 elsewhere."""
        pairs = zip(self.input_ids, self.judged, strict=True)
        return [IGNORED if judged == IGNORED else token for token, judged in pairs]

    def columns(self) -> dict[str, Any]:
        """Return ids and classes."""
        return {"input_ids": self.input_ids, "labels": self.judged}


class ProcessRewardTrainer(LogsMeans, CpuHalfPrecision, Trainer):  # type: ignore[misc]
    """transformers' trainer, with the share of steps that are judged rightly."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the mean cross-entropy of the judged positions of an optimizer step.

        transformers' own loss is the mean of each batch, also where the trainer counts on a sum
        over the number of items, so that N accumulated batches have N times the gradient (FM39).
        """
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        is_judged = labels != IGNORED
        total = functional.cross_entropy(
            outputs.logits[is_judged].float(), labels[is_judged], reduction="sum"
        )
        if num_items_in_batch is None:
            loss = total / is_judged.sum()
        else:
            # counted over all processes, over which the gradients are averaged afterwards
            loss = total / num_items_in_batch * self.accelerator.num_processes
        if self.model.training:
            is_hit = outputs.logits.detach().argmax(-1) == labels
            groups = {"accuracy": is_judged}
            groups |= {f"accuracy/{name}": labels == label for label, name in LABELS.items()}
            self.note({n: is_hit[at].float().mean() for n, at in groups.items() if at.any()})
        return (loss, outputs) if return_outputs else loss


def encode_steps(tokenizer: Any, prompt: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return the ids of a solution, and the position at which each step is judged.

    Every part is tokenised by itself, so that no token spans the end of a step. Scores of a trained
    model are `softmax(logits[positions])[:, 1]`.
    """
    end = list(tokenizer(SEPARATOR, add_special_tokens=False)["input_ids"])
    ids, positions = leading_bos(tokenizer), []
    for part in (prompt, *steps):
        ids += [*tokenizer(part, add_special_tokens=False)["input_ids"], *end]
        positions.append(len(ids) - 1)
    return ids, positions[1:]


def render(loaded: Loaded, samples: Sequence[Any], config: TrainingConfig) -> list[StepsRow]:
    """Tokenise solutions; steps that do not fit are left out, and solutions without any that do.

    Raises:
        DatasetError: a text holds a control token, or nothing is left.
    """
    file, rows = str(config.dataset), []
    control = control_tokens(loaded.tokenizer)
    for sample in samples:
        named = [("prompt", sample.prompt)]
        named += [(f"steps[{i}]", step) for i, step in enumerate(sample.steps)]
        for where, text in named:
            refuse_control_token(control, text, where, file, sample.line)
        row = _row(loaded.tokenizer, sample, config.max_length)
        if row is not None:
            rows.append(row)
    if not rows:
        raise DatasetError(
            f"no sample has a step that ends within {config.max_length} tokens",
            file=file,
            hint="raise --max-length",
        )
    return rows


def _row(tokenizer: Any, sample: StepsSample, max_length: int) -> StepsRow | None:
    """Return the row of a solution, with as many steps as fit; None where none does."""
    ids, positions = encode_steps(tokenizer, sample.prompt, sample.steps)
    kept = [position for position in positions if position < max_length]
    if not kept:
        return None
    judged = [IGNORED] * (kept[-1] + 1)
    for position, is_right in zip(kept, sample.labels, strict=False):
        judged[position] = int(is_right)
    return StepsRow(
        input_ids=ids[: len(judged)],
        judged=judged,
        truncated=len(kept) < len(positions),
        line=sample.line,
    )


@dataclass(frozen=True, kw_only=True)
class StepsCollator:
    """Pads rows on the right."""

    pad_id: int
    """Fills the ids; neither attended to nor judged."""
    multiple: int | None = None
    """The width of a batch is a multiple of it."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return ids, mask and classes, each (rows, tokens)."""
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        judged = [torch.tensor(row["labels"]) for row in rows]
        mask = [torch.ones_like(x) for x in ids]
        return {
            "input_ids": pad(ids, self.pad_id, pad_to_multiple_of=self.multiple),
            "attention_mask": pad(mask, 0, pad_to_multiple_of=self.multiple),
            "labels": pad(judged, IGNORED, pad_to_multiple_of=self.multiple),
        }


def make_trainer(parts: TrainerParts) -> Any:
    """Make the trainer; as TRL does for reward models, no dropout unless one is asked for."""
    if parts.config.lora_dropout == 0.0:
        disable_dropout_in_model(parts.model)
    return ProcessRewardTrainer(
        model=parts.model,
        args=configure(TrainingArguments, parts.arguments),
        data_collator=StepsCollator(
            pad_id=parts.loaded.tokenizer.pad_token_id, multiple=width_multiple(parts.config)
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
        auto_class="AutoModelForTokenClassification",
        new_parameters=NEW_HEADS,
        settings={
            "num_labels": len(LABELS),
            "id2label": LABELS,
            "label2id": {name: label for label, name in LABELS.items()},
        },
    ),
    task_type="TOKEN_CLS",
    choose=lambda loaded, config: {
        "chat_template": Choice(value="not applied", reason="a solution in steps is plain text")
    },
    learns_to_end=False,
)
"""Process reward models."""
