"""Cross-entropy in chunks of tokens: memory does not grow with vocabulary x tokens.

The gradient is made in the forward pass, while a chunk's logits are there, so nothing is computed
twice, and tokens without a label cost nothing. Of the schemes that were measured this was the
fastest (research/performance.md, section 8).

    loss = chunked_cross_entropy(hidden, head.weight, labels) / number_of_labels
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.modeling_outputs import CausalLMOutput

IGNORED = -100
"""Label of a token that is not trained (torch's cross-entropy default)."""
CHUNK_LOGITS = 1 << 23
"""Logits that exist at a time; 32 MB in fp32."""
MIN_CHUNK_TOKENS = 16
"""Tokens of a chunk, however large the vocabulary: fewer make the products slow."""


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Return the summed cross-entropy of softcap(scale * (hidden @ weight^T + bias)).

    Products are computed in autocast's type where autocast is on, everything else in fp32.

    Args:
        hidden: [tokens, width], the outputs of the last layer.
        weight: [vocabulary, width] of the head.
        labels: [tokens], the token that each position should predict, or -100 for none.
        bias: [vocabulary] of the head.
        scale: what logits are multiplied by.
        softcap: what logits are capped to by a tanh, after scaling (Gemma 2).

    Returns:
        A scalar in fp32: the sum over labelled tokens, 0 where there are none.
    """
    labelled = labels != IGNORED
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch's is not typed
        hidden[labelled],
        weight,
        bias,
        labels[labelled],
        scale,
        softcap,
        torch.is_grad_enabled(),
    )
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes loss and gradients chunk by chunk; backward only multiplies."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        scale: float,
        softcap: float | None,
        with_grad: bool,
    ) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        wants = [with_grad and need for need in ctx.needs_input_grad[:3]]
        grads = [
            torch.empty_like(hidden) if wants[0] else None,
            torch.zeros_like(weight, dtype=torch.float32) if wants[1] else None,
            torch.zeros_like(bias, dtype=torch.float32) if wants[2] and bias is not None else None,
        ]
        head = weight.to(dtype)
        losses = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        size = max(MIN_CHUNK_TOKENS, CHUNK_LOGITS // weight.shape[0])
        size = max(1, min(size, hidden.shape[0]))
        # one workspace for all chunks: fresh memory would be faulted in page by page each time
        product = hidden.new_empty((size, weight.shape[0]), dtype=dtype)
        logits = product if dtype == torch.float32 else product.float()
        with torch.autocast(kind, enabled=False):
            for start in range(0, hidden.shape[0], size):
                part = slice(start, min(start + size, hidden.shape[0]))
                inputs = hidden[part].to(dtype)
                rows = slice(0, inputs.shape[0])
                torch.mm(inputs, head.t(), out=product[rows])
                if logits is not product:
                    logits[rows] = product[rows]
                if bias is not None:
                    logits[rows] += bias
                losses[part] = _turn_into_slope(logits[rows], labels[part], scale, softcap)
                if any(wants):
                    if logits is not product:
                        product[rows] = logits[rows]
                    _add_gradients(grads, part, logits[rows], product[rows], inputs, head)
        kept = zip(grads, (hidden, weight, bias), strict=True)
        ctx.save_for_backward(
            *(None if g is None or like is None else g.to(like.dtype) for g, like in kept)
        )
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = outputs
        grads = (None if grad is None else grad * factor for grad in ctx.saved_tensors)
        return *grads, None, None, None, None


def _turn_into_slope(logits: Tensor, labels: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Return each token's loss, and leave its derivative by the head's output in `logits`."""
    if scale != 1.0:
        logits *= scale
    bent = None
    if softcap is not None:
        bent = torch.tanh(logits / softcap)
        torch.mul(bent, softcap, out=logits)
    logits -= logits.amax(dim=-1, keepdim=True)
    wanted = logits.gather(-1, labels[:, None])
    probabilities = logits.exp_()
    total = probabilities.sum(dim=-1, keepdim=True)
    slope = probabilities.div_(total)
    slope.scatter_add_(-1, labels[:, None], torch.full_like(wanted, -1.0))
    if bent is not None:
        slope *= bent.square_().neg_().add_(1)
    if scale != 1.0:
        slope *= scale
    return (total.log() - wanted)[:, 0]


def _add_gradients(
    grads: list[Tensor | None],
    part: slice,
    exact: Tensor,
    slope: Tensor,
    inputs: Tensor,
    head: Tensor,
) -> None:
    """Add one chunk's share to the gradients of hidden states, head and bias."""
    by_hidden, by_weight, by_bias = grads
    if by_bias is not None:
        by_bias += exact.sum(dim=0)
    if by_hidden is not None:
        by_hidden[part] = slope @ head
    if by_weight is not None and head.dtype == torch.float32:
        by_weight.addmm_(slope.t(), inputs)
    elif by_weight is not None:
        by_weight += slope.t() @ inputs


def logit_factor(config: Any) -> float:
    """Return what a model multiplies its logits by, from its text configuration.

    Cohere and Muse multiply, Falcon-H1 too; Granite and MiniCPM3 divide.
    """
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if value is not None:
            return float(value)
    divisor = getattr(config, "logits_scaling", None)
    if divisor is None:
        return 1.0
    return float(divisor) if config.model_type == "hyperclovax" else 1.0 / float(divisor)


def has_plain_head(model: Any) -> bool:
    """Return whether the loss can be computed from the head's weight: a plain linear layer."""
    head = model.get_output_embeddings()
    return type(head) is nn.Linear and type(head.weight) is nn.Parameter


def add_chunked_loss(model: Any) -> None:
    """Let `model(..., chunked_loss=True)` return the loss alone, computed in chunks.

    Labels are shifted inside, as in the model's own loss. `num_items_in_batch` is what the sum is
    divided by; without it, the number of labelled tokens. Every other call is answered as before.

    Args:
        model: a causal language model of transformers, without its adapter's wrapper.
    """
    answer = model.forward
    settings = model.config.get_text_config()
    scale = logit_factor(settings)
    softcap = getattr(settings, "final_logit_softcapping", None)

    def forward(self: Any, *args: Any, chunked_loss: bool = False, **kwargs: Any) -> Any:
        if not chunked_loss:
            return answer(*args, **kwargs)
        labels = kwargs.pop("labels")
        count = kwargs.pop("num_items_in_batch", None)
        kwargs["use_cache"] = False
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        head = self.get_output_embeddings()
        targets = labels[:, 1:].reshape(-1).to(head.weight.device)
        total = chunked_cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]).to(head.weight.device),
            head.weight,
            targets,
            bias=head.bias,
            scale=scale,
            softcap=softcap,
        )
        if count is None:
            count = (targets != IGNORED).sum()
        return CausalLMOutput(loss=total / torch.as_tensor(count).clamp(min=1).to(total.device))

    model.forward = types.MethodType(forward, model)
