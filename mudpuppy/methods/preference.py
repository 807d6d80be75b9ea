"""Preferences: DPO, IPO and KTO on TRL's trainers, and ORPO on the trainer beside this module.

An adapter's reference is the model with the adapter off; an adapter that is continued is compared
with a frozen copy of itself, and full weights with a frozen copy of the model.
"""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from mudpuppy.config import TrainingConfig
from mudpuppy.data.render_pairs import LabelledRow, PairRow, render_labelled, render_pairs
from mudpuppy.loading import Loaded, require_known_ids
from mudpuppy.methods.family import Family, TrainerParts
from mudpuppy.methods.fitting import CpuHalfPrecision, configure
from mudpuppy.methods.odds_ratio import make_trainer as make_orpo_trainer
from mudpuppy.methods.sft import make_renderer
from mudpuppy.methods.trainers import LeavesNoReference, forget_reference, width_multiple
from mudpuppy.records import Choice

BETA = 0.1
"""Default of TRL's DPO, KTO and ORPO."""


class ReadyRowsDPOTrainer(LeavesNoReference, CpuHalfPrecision, DPOTrainer):  # type: ignore[misc]
    """TRL's DPO trainer for rows that are tokenised already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


class ReadyRowsKTOTrainer(LeavesNoReference, CpuHalfPrecision, KTOTrainer):  # type: ignore[misc]
    """TRL's KTO trainer for rows that are tokenised already."""

    def _prepare_dataset(
        self, dataset: Dataset, tokenizer: Any, args: KTOConfig, name: str
    ) -> Dataset:
        """Add the mismatched answers that the KL distance is estimated on.

        TRL takes batches in the order of the set, so that each answer's stand-in is of the same
        batch; a set sorted by its labels would then be learnt in that order, hence the shuffle.
        """
        del tokenizer
        rows = dataset.to_list()
        if name == "train":
            random.Random(args.seed).shuffle(rows)
        for start in range(0, len(rows), args.per_device_train_batch_size):
            batch = rows[start : start + args.per_device_train_batch_size]
            # A row that is left over would stand in for itself: it takes that of the batch before.
            last = rows[start - 1] if len(batch) == 1 else batch[-1]
            for row, before in zip(batch, [last, *batch[:-1]], strict=True):
                row["KL_completion_ids"] = before["completion_ids"]
        return Dataset.from_list(rows)


def reference_for(parts: TrainerParts) -> Any:
    """Return the frozen copy that full weights are compared with; None for an adapter."""
    if parts.config.trains_adapter:
        return None
    reference = copy.deepcopy(parts.model).eval()
    return reference.requires_grad_(False)


def choose_reference(loaded: Loaded, config: TrainingConfig) -> dict[str, Choice]:
    """Say what the trained model is compared with, and what that costs."""
    if config.trains_adapter and config.adapter is not None:
        value, reason = "a frozen copy of the adapter", "the adapter is continued"
    elif config.trains_adapter:
        value, reason = "the model with the adapter off", "costs no memory"
    else:
        size = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
        value = f"a frozen copy of the model, {math.ceil(size / 1e6):,} MB"
        reason = "--no-use-peft; an adapter would need none"
    return {"reference": Choice(value=value, reason=reason)}


def _render_pairs(loaded: Loaded, samples: Sequence[Any], config: TrainingConfig) -> list[PairRow]:
    rows = render_pairs(make_renderer(loaded, config), samples, str(config.dataset))
    require_known_ids(config.model, loaded.model, [row.rejected_ids for row in rows])
    return rows


def _render_labelled(
    loaded: Loaded, samples: Sequence[Any], config: TrainingConfig
) -> list[LabelledRow]:
    return render_labelled(make_renderer(loaded, config), samples, str(config.dataset))


def _make_dpo_trainer(parts: TrainerParts, loss_type: str) -> Any:
    return _make(
        parts,
        ReadyRowsDPOTrainer,
        partial(DPOConfig, loss_type=[loss_type], max_length=None),
    )


def _make_kto_trainer(parts: TrainerParts) -> Any:
    return _make(parts, ReadyRowsKTOTrainer, partial(KTOConfig, max_length=parts.config.max_length))


def _make(parts: TrainerParts, trainer: Any, settings: Callable[..., Any]) -> Any:
    """Make one of TRL's trainers that compare with a reference."""
    config = parts.config
    settings = partial(
        settings,
        beta=BETA if config.beta is None else config.beta,
        # Otherwise TRL sets the dropout of the adapter to 0 without a word.
        disable_dropout=config.lora_dropout == 0.0,
        pad_to_multiple_of=width_multiple(config),
    )
    with dropping_reference(parts):
        return trainer(
            model=parts.model,
            ref_model=reference_for(parts),
            args=configure(settings, parts.arguments),
            train_dataset=parts.train,
            eval_dataset=parts.held_out,
            processing_class=parts.loaded.tokenizer,
            callbacks=parts.callbacks,
        )


@contextmanager
def dropping_reference(parts: TrainerParts) -> Iterator[None]:
    """Surround the making of a trainer of TRL, which copies every adapter for its reference.

    A fresh adapter changes nothing: switching it off gives the same reference for free.
    """
    with warnings.catch_warnings():
        # PEFT asks transformers by the old name; it is not our call.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        yield
    if parts.config.adapter is None:
        forget_reference(parts.model)


FAMILIES = {
    "dpo": Family(
        render=_render_pairs,
        make_trainer=partial(_make_dpo_trainer, loss_type="sigmoid"),
        choose=choose_reference,
    ),
    "ipo": Family(
        render=_render_pairs,
        make_trainer=partial(_make_dpo_trainer, loss_type="ipo"),
        choose=choose_reference,
    ),
    "kto": Family(render=_render_labelled, make_trainer=_make_kto_trainer, choose=choose_reference),
    "orpo": Family(render=_render_pairs, make_trainer=make_orpo_trainer),
}
"""The families, by method."""
