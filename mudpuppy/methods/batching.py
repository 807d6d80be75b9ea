"""How rows become batches, and batches a loss: packed rows, budgets of tokens, loss in chunks.

Mixed into a trainer before transformers' own classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.utils import is_triton_available

from mudpuppy import team
from mudpuppy.chunked_loss import add_chunked_loss, has_plain_head
from mudpuppy.config import TrainingConfig
from mudpuppy.data.batches import TokenBudgetSampler
from mudpuppy.data.packing import pack
from mudpuppy.methods.family import Row


def arrange(rows: Sequence[Row], config: TrainingConfig) -> Sequence[Row]:
    """Return what the trainer gets: the rows, or packed rows that hold them."""
    return pack(rows, config.max_length, seed=config.seed) if config.packing else rows


def token_batches(rows: Sequence[Row], config: TrainingConfig) -> TokenBudgetSampler | None:
    """Return the batches by tokens, where they are asked for.

    Raises:
        DatasetError: a row is longer than a batch may be.
    """
    if config.tokens_per_batch is None:
        return None
    return TokenBudgetSampler(
        [len(row.input_ids) for row in rows],
        config.tokens_per_batch,
        seed=config.seed,
        parties=team.size(),
        file=str(config.dataset),
        lines=[getattr(row, "line", 0) for row in rows],
    )


class _NextOrder(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Chooses the order of each epoch.

    The trainer does it too, but does not reach the sampler below the wrappers of several processes
    and of a run that is taken up again.
    """

    def __init__(self, batches: TokenBudgetSampler) -> None:
        self.batches = batches

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Go by the progress, which a checkpoint restores."""
        self.batches.set_epoch(int(state.epoch or 0))


class TokenBatches:
    """Mixed into a trainer: takes its training batches from a `TokenBudgetSampler`."""

    args: Any
    accelerator: Any
    train_dataset: Any
    data_collator: Any
    batches: TokenBudgetSampler | None = None

    def take_batches(self, batches: TokenBudgetSampler | None) -> None:
        """Use these batches instead of a number of samples."""
        self.batches = batches
        if batches is not None:
            self.add_callback(_NextOrder(batches))  # type: ignore[attr-defined]  # the trainer's

    def get_train_dataloader(self) -> Any:
        """Return the loader of the training batches."""
        if self.batches is None:
            return super().get_train_dataloader()  # type: ignore[misc]  # the trainer's own
        args = self.args
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
        )
        # The batches can be shared evenly as they are; accelerate would repeat some.
        before, self.accelerator.even_batches = self.accelerator.even_batches, False
        try:
            return self.accelerator.prepare(loader)
        finally:
            self.accelerator.even_batches = before


class ChunkedLoss:
    """Mixed into TRL's SFT trainer: computes the loss in chunks where TRL has no kernel for it.

    TRL's own loss does not keep the logits either. Without Triton it scores every position, padding
    and prompts too, and projects twice; on a CPU this one was 7 to 11 times as fast.
    """

    args: Any
    accelerator: Any
    model: Any
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool
    is_chunked: bool = False

    def chunk_loss(self) -> None:
        """Compute the loss in chunks from now on, where that can be done and gains something."""
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        has_kernel = is_triton_available() and self.accelerator.device.type in ("cuda", "xpu")
        self.is_chunked = (
            not has_kernel
            and not self.aux_loss_enabled  # type: ignore[attr-defined]  # TRL's: it adds router losses
            # where the head's weight may be a shard
            and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
            and has_plain_head(base)
        )
        if self.is_chunked:
            add_chunked_loss(base)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of one batch, as a share of the tokens of the whole step."""
        if return_outputs or not self.is_chunked:
            return super().compute_loss(  # type: ignore[misc]  # the trainer's own
                model, inputs, return_outputs, num_items_in_batch
            )
        loss = model(**inputs, chunked_loss=True, num_items_in_batch=num_items_in_batch).loss
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # DDP averages gradients, and the tokens are those of all processes.
            loss = loss * self.accelerator.num_processes
        return loss
