"""ORPO (Hong et al. 2024) on transformers' trainer.

TRL's own is experimental, tokenises by rules of its own, and keeps the logits of every token.
The loss is the negative log-likelihood a token of the better answer, minus beta times the
log-sigmoid of the log odds ratio of both answers. There is no reference model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Trainer, TrainingArguments
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from mudpuppy.methods.family import TrainerParts
from mudpuppy.methods.fitting import CpuHalfPrecision, configure
from mudpuppy.methods.trainers import LogsMeans, width_multiple

BETA = 0.1
"""Weight of the odds ratio; the paper's lambda."""


class OddsRatioTrainer(LogsMeans, CpuHalfPrecision, Trainer):  # type: ignore[misc]  # no types there
    """Learns the better answer and to prefer it, in one forward pass."""

    def __init__(self, *, beta: float, response_only: bool, **settings: Any) -> None:
        super().__init__(**settings)
        # The loss is a mean of its own, so the trainer divides by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self._beta = beta
        self._response_only = response_only

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt_ids", "chosen_ids", "rejected_ids"]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a batch whose first half are the better answers."""
        del num_items_in_batch
        is_answer = inputs["completion_mask"][:, 1:].bool()
        is_text = inputs["attention_mask"][:, 1:].bool()
        scored = is_answer if self._response_only else is_text
        labels = inputs["input_ids"].clone()
        labels[:, 1:].masked_fill_(~scored, -100)
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=labels,
            fused_lm_head=True,
        )
        logps = outputs.log_probs.float()
        # Each sample counts alike, so that accumulated batches add up to one large batch.
        likely, _ = _mean_of(logps, scored).chunk(2)
        nll = -likely.mean()
        better, worse = _mean_of(logps, is_answer).chunk(2)
        ratio = functional.logsigmoid(better - worse - _log1mexp(better) + _log1mexp(worse))
        loss = nll - self._beta * ratio.mean()
        if self.model.training:
            self.note(
                {
                    "nll_loss": nll,
                    "log_odds_ratio": ratio.mean(),
                    "rewards/chosen": self._beta * better.mean(),
                    "rewards/rejected": self._beta * worse.mean(),
                    "rewards/margins": self._beta * (better - worse).mean(),
                    "rewards/accuracies": (better > worse).float().mean(),
                    "logps/chosen": better.mean(),
                    "logps/rejected": worse.mean(),
                }
            )
        return (loss, None) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """Compute the loss alone: there are no labels that could be compared."""
        del prediction_loss_only, ignore_keys
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None


def _mean_of(logps: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of each row where the mask is set."""
    return (logps * mask).sum(-1) / mask.sum(-1)


def _log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x < 0, exact at both ends (Maechler 2012)."""
    x = x.clamp(max=-1e-6)  # an answer of probability 1 has infinite odds
    near_zero = torch.log(-torch.expm1(x))
    far = torch.log1p(-torch.exp(x))
    return torch.where(x > -0.6931472, near_zero, far)


def make_trainer(parts: TrainerParts) -> Any:
    """Make the trainer, on a model whose head computes log-probabilities in chunks."""
    config, model = parts.config, parts.model
    add_fused_lm_head(model.get_base_model() if config.trains_adapter else model)
    return OddsRatioTrainer(
        beta=BETA if config.beta is None else config.beta,
        response_only=config.response_only,
        model=model,
        args=configure(TrainingArguments, parts.arguments),
        data_collator=DataCollatorForPreference(
            pad_token_id=parts.loaded.tokenizer.pad_token_id,
            pad_to_multiple_of=width_multiple(config),
        ),
        train_dataset=parts.train,
        eval_dataset=parts.held_out,
        processing_class=parts.loaded.tokenizer,
        callbacks=parts.callbacks,
    )
