"""The loss of rows that are forgotten and rows that are kept, mixed into TRL's SFT trainer.

With R the labelled tokens of kept rows, F those of forget rows and N those of the step, both:

    loss = (sum_R nll + retain_kl sum_R KL(base || model) + unlearn_weight U) / N

    none              U = sum_F nll: what the forget rows say is learnt (weight 1)
    gradient-ascent   U = -sum_F min(nll, ln V)             GradDiff, Liu et al. 2022; TOFU,
                                                            Maini et al. 2024
    npo               U = sum over forget rows of 2/beta softplus(beta log(p / p_base))
                                                            Zhang et al. 2024, equation 3

Ascent ends where a token is as unlikely as chance makes it, ln V: beyond that the loss would fall
for ever and take the model with it. NPO's slope falls to 0 by itself, and before the first step it
is that of gradient ascent. Everything is a sum over the step's own tokens, so that accumulated
batches and packed rows add up to what one large batch gives.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mudpuppy.chunked_loss import IGNORED
from mudpuppy.config import TrainingConfig
from mudpuppy.errors import ModelError
from mudpuppy.loading import Loaded
from mudpuppy.methods.family import TrainerParts
from mudpuppy.methods.trainers import LogsMeans
from mudpuppy.records import Choice
from mudpuppy.token_scores import (
    HIDDEN,
    SCORES,
    Reference,
    TokenScores,
    add_token_scores,
    head_of,
)

NPO_BETA = 0.1
"""Default of the paper."""


def weighs_groups(config: TrainingConfig) -> bool:
    """Return whether rows are told apart by their group."""
    return config.unlearn != "none" or config.retain_kl > 0.0


def needs_reference(config: TrainingConfig) -> bool:
    """Return whether the loss compares with the model as it was."""
    return config.unlearn == "npo" or config.retain_kl > 0.0


def _switches_off(config: TrainingConfig) -> bool:
    """Return whether the reference is the model without its adapter."""
    return config.trains_adapter and config.adapter is None


def make_reference(parts: TrainerParts) -> Any:
    """Return the frozen copy that is compared with; None where there is none, or it is the base."""
    if not needs_reference(parts.config) or _switches_off(parts.config):
        return None
    return copy.deepcopy(parts.model).eval().requires_grad_(False)


def choose_reference(loaded: Loaded, config: TrainingConfig) -> dict[str, Choice]:
    """Say what the trained model is compared with, and what that costs."""
    if not needs_reference(config):
        return {}
    if _switches_off(config):
        value, reason = "the model with the adapter off", "costs no memory, and a pass a batch"
    else:
        size = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
        value = f"a frozen copy of the model, {math.ceil(size / 1e6):,} MB"
        reason = "the adapter is continued" if config.trains_adapter else "all weights are trained"
    return {"reference": Choice(value=value, reason=reason)}


@dataclass(frozen=True)
class GroupCollator:
    """Pads rows with another collator, and keeps which of them are forgotten."""

    pad: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
    """Makes a batch of rows."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the batch with `forget`, one flag a row."""
        plain = [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
        return {**self.pad(plain), "forget": torch.tensor([row["forget"] for row in rows])}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How the parts of the loss are weighed."""

    unlearn: str
    """What is done with forget rows."""
    weight: float
    """Weight of what is forgotten."""
    kl: float
    """Weight of the distance to the reference on kept rows."""
    beta: float
    """NPO's."""
    most: float
    """Cost of a token, in nats, beyond which it is not forgotten further."""

    def add_up(self, scores: TokenScores, forgets: Tensor, rows: Tensor) -> Tensor:
        """Return the loss of a batch before it is divided by the step's labels.

        Args:
            scores: what each label costs.
            forgets: [labels], whether it is of a forget row.
            rows: [labels], the number of its row.
        """
        nll = scores.nll
        loss = nll[~forgets].sum()
        if self.kl:
            loss = loss + self.kl * scores.kl[~forgets].sum()
        return loss + self._forget(scores, forgets, rows)

    def _forget(self, scores: TokenScores, forgets: Tensor, rows: Tensor) -> Tensor:
        nll = scores.nll[forgets]
        if self.unlearn == "none":
            return nll.sum()
        if self.unlearn == "gradient-ascent":
            return -self.weight * nll.clamp(max=self.most).sum()
        _, row = torch.unique(rows[forgets], return_inverse=True)
        ratio = torch.zeros(int(row.max()) + 1 if len(row) else 0, device=nll.device)
        ratio = ratio.index_add(0, row, scores.reference_nll[forgets] - nll)
        return self.weight * (2 / self.beta) * functional.softplus(self.beta * ratio).sum()


class GroupObjective(LogsMeans):
    """Mixed into TRL's SFT trainer, before it."""

    args: Any
    accelerator: Any
    model: Any
    ref_model: Any = None
    _weights: Weights
    _compares: bool = False

    def weigh_groups(self, config: TrainingConfig, reference: Any) -> None:
        """Compute this loss from now on.

        Args:
            config: the settings.
            reference: the frozen copy to compare with, where it is not the adapter's base.

        Raises:
            ModelError: the model adds a loss of its own to that of the tokens.
        """
        if self.aux_loss_enabled:  # type: ignore[attr-defined]  # TRL's: of a router
            raise ModelError(
                "the model adds the loss of its router, which no row can be forgotten from",
                hint='write "output_router_logits": false into its config.json',
            )
        for one in (self.model, reference):
            if one is not None:
                add_token_scores(_plain(one))
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        self._weights = Weights(
            unlearn=config.unlearn,
            weight=config.unlearn_weight,
            kl=config.retain_kl,
            beta=NPO_BETA if config.beta is None else config.beta,
            most=math.log(vocabulary),
        )
        self._compares = needs_reference(config)
        if reference is not None and not hasattr(reference, "hf_device_map"):
            reference.to(self.accelerator.device)
        self.ref_model = reference

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of one batch, as a share of the tokens of the whole step."""
        given = {name: value for name, value in inputs.items() if name != "forget"}
        reference = self._refer(model, given) if self._compares else None
        scores = model(**given, tokens=SCORES, reference=reference)
        rows = _rows_of(given).to(scores.nll.device)
        forgets = inputs["forget"].to(rows.device)[rows]
        loss = self._weights.add_up(scores, forgets, rows)
        count = len(rows) if num_items_in_batch is None else num_items_in_batch
        loss = loss / torch.as_tensor(count).clamp(min=1).to(loss.device)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # DDP averages gradients, and the tokens are those of all processes.
            loss = loss * self.accelerator.num_processes
        if self.model.training:
            self.note(_means(scores, forgets, with_kl=bool(self._weights.kl)))
        return (loss, None) if return_outputs else loss

    @torch.no_grad()
    def _refer(self, model: Any, inputs: dict[str, Any]) -> Reference:
        """Return what the reference makes of a batch."""
        if self.ref_model is not None:
            with self.accelerator.autocast():
                found = self.ref_model(**inputs, tokens=HIDDEN)
        else:
            with self.accelerator.unwrap_model(model).disable_adapter():
                found = model(**inputs, tokens=HIDDEN)
        source = self.model if self.ref_model is None else self.ref_model
        return Reference(found.hidden, head_of(_plain(source)))


def _plain(model: Any) -> Any:
    """Return a model without its adapter's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _rows_of(inputs: Mapping[str, Any]) -> Tensor:
    """Return the number of the row, or packed document, of every label that is predicted."""
    labels, lengths = inputs["labels"], inputs.get("document_lengths")
    count = labels.shape[0] if lengths is None else len(lengths)
    numbers = torch.arange(count, device=labels.device)
    if lengths is None:
        rows = numbers[:, None].expand_as(labels)
    else:
        rows = numbers.repeat_interleave(torch.tensor(lengths, device=labels.device))[None]
    return rows[:, 1:][labels[:, 1:] != IGNORED]


def _means(scores: TokenScores, forgets: Tensor, *, with_kl: bool) -> dict[str, Tensor]:
    """Return what is logged: nats a token of kept and of forget rows, as far as there are any."""
    series = [("retain_nll", scores.nll, ~forgets), ("forget_nll", scores.nll, forgets)]
    if with_kl:
        series.append(("retain_kl", scores.kl, ~forgets))
    return {name: value[on].mean() for name, value, on in series if bool(on.any())}
