"""What single tokens cost, and how far each is from a reference: in chunks, for losses of weight.

`mudpuppy.chunked_loss` adds tokens up while their logits are there, which is as fast as it gets,
and right where all tokens weigh alike. Here they come back one by one, so that a loss may subtract
some, or take rows together; a chunk's logits are computed again in the backward pass.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from mudpuppy.chunked_loss import IGNORED, MIN_CHUNK_TOKENS, has_plain_head, logit_factor

CHUNK_LOGITS = 1 << 21
"""Logits that exist at a time, 8 MB in fp32; with a reference a chunk needs five times as much."""
HIDDEN, SCORES = "hidden", "scores"
"""What a call may ask for: the last layer's outputs where a label is, or what the labels cost."""


@dataclass
class TokenScores(ModelOutput):  # type: ignore[misc]  # transformers ships no types
    """One number for each label that is predicted by something, in the order of the batch."""

    nll: Tensor = None  # type: ignore[assignment]  # ModelOutput asks for defaults
    """Negative log-likelihood in nats."""
    reference_nll: Tensor = None  # type: ignore[assignment]  # ModelOutput asks for defaults
    """The same of the reference, without a gradient."""
    kl: Tensor = None  # type: ignore[assignment]  # ModelOutput asks for defaults
    """KL(reference || model) over the whole vocabulary, in nats."""
    hidden: Tensor = None  # type: ignore[assignment]  # ModelOutput asks for defaults
    """Outputs of the last layer, [labels, width], where these were asked for."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What turns the outputs of the last layer into logits."""

    weight: Tensor | None
    """[vocabulary, width]; None where the outputs are logits already."""
    bias: Tensor | None = None
    """[vocabulary]."""
    scale: float = 1.0
    """What logits are multiplied by."""
    softcap: float | None = None
    """What they are capped to by a tanh, after scaling (Gemma 2)."""

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """Return [tokens, vocabulary] in fp32; the product is in autocast's type where it is on."""
        logits = hidden
        if self.weight is not None:
            kind = hidden.device.type
            is_on = torch.is_autocast_enabled(kind)
            dtype = torch.get_autocast_dtype(kind) if is_on else hidden.dtype
            logits = functional.linear(hidden.to(dtype), self.weight.to(dtype))
        logits = logits.float()
        if self.bias is not None:
            logits = logits + self.bias.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return functional.log_softmax(logits, dim=-1)


class Reference(NamedTuple):
    """What a model is compared with."""

    hidden: Tensor
    """[labels, width], the outputs by which the reference predicts each label."""
    head: Head
    """Its own head: where all weights are trained, the model's has moved."""


def score_tokens(
    head: Head, hidden: Tensor, labels: Tensor, reference: Reference | None = None
) -> TokenScores:
    """Return what each label costs, with gradients to the outputs and the head.

    Args:
        head: what makes logits of the outputs.
        hidden: [labels, width], the outputs by which each label is predicted.
        labels: [labels], token ids.
        reference: what is compared with, where anything is.
    """
    wide = hidden.shape[-1] if head.weight is None else head.weight.shape[0]
    size = max(MIN_CHUNK_TOKENS, CHUNK_LOGITS // wide)
    parts = []
    for start in range(0, max(1, hidden.shape[0]), size):
        part = slice(start, start + size)
        before = reference and Reference(reference.hidden[part], reference.head)
        words = (head, hidden[part], labels[part], before)
        if torch.is_grad_enabled():
            parts.append(
                checkpoint(_score_chunk, *words, use_reentrant=False, preserve_rng_state=False)
            )
        else:
            parts.append(_score_chunk(*words))
    columns: list[Any] = [None if x[0] is None else torch.cat(x) for x in zip(*parts, strict=True)]
    return TokenScores(*columns)


def _score_chunk(
    head: Head, hidden: Tensor, labels: Tensor, reference: Reference | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the cost of each label, that of the reference, and the distance between both."""
    found = head.log_probabilities(hidden)
    nll = -found.gather(-1, labels[:, None])[:, 0]
    if reference is None:
        return nll, None, None
    with torch.no_grad():
        wanted = reference.head.log_probabilities(reference.hidden)
    kl = (wanted.exp() * (wanted - found)).sum(dim=-1)
    return nll, -wanted.gather(-1, labels[:, None])[:, 0], kl


def head_of(model: Any) -> Head:
    """Return the head of a causal language model of transformers, without its adapter's wrapper."""
    if not has_plain_head(model):
        return Head(weight=None)
    layer, settings = model.get_output_embeddings(), model.config.get_text_config()
    return Head(
        weight=layer.weight,
        bias=layer.bias,
        scale=logit_factor(settings),
        softcap=getattr(settings, "final_logit_softcapping", None),
    )


def add_token_scores(model: Any) -> None:
    """Let `model(..., tokens="scores")` return `TokenScores`; other calls are answered as before.

    Labels are shifted inside, as in the model's own loss. `tokens="hidden"` returns the outputs of
    the last layer where a label is, of which a `Reference` for another call is made.

    Args:
        model: a causal language model of transformers, without its adapter's wrapper.
    """
    answer = model.forward

    def forward(
        self: Any,
        *args: Any,
        tokens: str | None = None,
        reference: Reference | None = None,
        **kwargs: Any,
    ) -> Any:
        if tokens is None:
            return answer(*args, **kwargs)
        targets = kwargs.pop("labels")[:, 1:]
        kwargs["use_cache"] = False
        head = head_of(self)
        if head.weight is None:
            hidden = answer(*args, **kwargs).logits
        else:
            hidden = self.base_model(*args, **kwargs).last_hidden_state
        place = hidden.device if head.weight is None else head.weight.device
        targets = targets.to(place)
        is_label = targets != IGNORED
        kept = hidden[:, :-1].to(place)[is_label]
        if tokens == HIDDEN:
            return TokenScores(hidden=kept)
        return score_tokens(head, kept, targets[is_label], reference)

    model.forward = types.MethodType(forward, model)
