"""Watches how training computes: in which type, recomputed or not, streamed or not, on what.

A feature that is switched off in silence changes no loss; it shows only here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness.observations import Mechanics
from mudpuppy.quant.blocks import find_decoder_layers


class MechanicsWatcher:
    """Listens to one linear layer in the first decoder block, and to every batch."""

    def __init__(self, model: Any) -> None:
        """Hook the first linear layer of the first block."""
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        block = find_decoder_layers(plain).layers[0]
        linear = next(part for part in block.modules() if isinstance(part, nn.Linear))
        self._model = model
        self._calls = 0
        self._batches = 0
        self._dtypes: set[str] = set()
        self._substituted = False
        self._trained: set[tuple[int, ...]] = set()
        self._held_out: set[tuple[int, ...]] = set()
        self._hook = linear.register_forward_hook(self._see_linear)

    def _see_linear(self, linear: nn.Linear, args: Any, output: torch.Tensor) -> None:
        del args
        if not self._model.training:
            return
        self._calls += 1
        self._dtypes.add(str(output.dtype).removeprefix("torch."))
        # A streamed layer computes with a copy that was fetched for it, not with its own leaf.
        self._substituted |= bool(linear.weight.requires_grad and not linear.weight.is_leaf)

    def see_batch(self, batch: dict[str, Any]) -> None:
        """Note the rows of one batch, by whether they are trained on."""
        ids, mask = batch["input_ids"].cpu(), batch.get("attention_mask")
        present = torch.ones_like(ids) if mask is None else mask.cpu()
        rows = {tuple(row[kept.bool()].tolist()) for row, kept in zip(ids, present, strict=True)}
        if self._model.training:
            self._batches += 1
            self._trained |= rows
        else:
            self._held_out |= rows

    def conclude(self) -> Mechanics | None:
        """Stop listening and return what was seen, or None when nothing was trained."""
        self._hook.remove()
        if not self._batches:
            return None
        return Mechanics(
            compute_dtypes=tuple(sorted(self._dtypes)),
            calls_per_batch=self._calls / self._batches,
            streamed=self._substituted,
            held_out_rows=len(self._held_out),
            held_out_trained=len(self._held_out & self._trained),
        )
