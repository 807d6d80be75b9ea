"""Attention for packed rows: causal inside each document, blind across documents, no S x S mask.

transformers lets an attention function be registered by name, together with the function that
makes its masks. Ours run scaled_dot_product_attention on one document after the other, and on all
documents of one length at once. That is exact, and costs what the documents cost alone.

    with attending_by_document(model):
        model(input_ids=..., position_ids=..., document_lengths=(5, 5, 3))  # one row of 13 tokens
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mudpuppy.attention.flash import flash_attention
from mudpuppy.errors import EngineError, ModelError

NAME = "mudpuppy_documents"
"""What the functions are registered as."""
KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers that look at nothing but what attention shows them."""
_FOREIGN = ("position_bias", "s_aux", "head_mask")
"""Arguments that change attention in ways that are not computed here."""
PROBE_LENGTHS = (7, 6)
"""Tokens of the two documents that a model is tried on."""
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""How far logits may move, as a share of the largest one, by rounding alone."""


@dataclass(frozen=True, kw_only=True)
class DocumentMask:
    """Stands in for a mask: each document is causal, within a window where there is one."""

    window: int | None


def document_mask(
    *args: Any,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    local_size: int | None = None,
    use_vmap: bool = False,
    **kwargs: Any,
) -> Any:
    """Return what stands for the mask of a packed row, and any other mask as for SDPA.

    transformers has found the row packed when it does not allow the mask to be left out.

    Raises:
        EngineError: the model bends its mask in a way of its own.
    """
    if attention_mask is not None or allow_is_causal_skip:
        return sdpa_mask(
            *args,
            attention_mask=attention_mask,
            allow_is_causal_skip=allow_is_causal_skip,
            local_size=local_size,
            use_vmap=use_vmap,
            **kwargs,
        )
    if use_vmap:
        raise EngineError(
            "this model bends its attention mask in a way that packed rows do not know",
            hint="leave out --packing",
        )
    return DocumentMask(window=local_size)


def document_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    document_lengths: Sequence[int] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each document of one row.

    Args:
        module: the layer that attends.
        query: [1, heads, tokens, head_dim].
        key: [1, key_heads, tokens, head_dim].
        value: as `key`.
        attention_mask: a `DocumentMask`; anything else is handed to transformers' SDPA.
        dropout: share of the weights that are dropped.
        scaling: factor of the scores.
        document_lengths: tokens of each document, in order; quick where equal ones are adjacent.
        sliding_window: as the layer has it.
        softcap: as the layer has it.
        kwargs: what else the model says.

    Returns:
        [1, tokens, heads, head_dim], and no weights.

    Raises:
        EngineError: the lengths are not those of the row, or the layer attends in a way that is
            not computed here.
    """
    if not isinstance(attention_mask, DocumentMask) and softcap is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]  # transformers is not typed
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    if not isinstance(attention_mask, DocumentMask):
        plain = flash_attention(
            query,
            key,
            value,
            mask=attention_mask,
            causal=attention_mask is None,
            dropout=dropout,
            scale=scaling,
            softcap=softcap,
        )
        return plain.transpose(1, 2).contiguous(), None
    lengths = _check_row(module, query, attention_mask, document_lengths, sliding_window, kwargs)
    runs = [(length, len(list(same))) for length, same in groupby(lengths)]
    # split, not slices: the gradient of a slice would be as long as the row
    spans = [length * count for length, count in runs]
    pieces = zip(*(torch.split(one, spans, dim=2) for one in (query, key, value)), strict=True)
    outputs = []
    for (length, count), piece in zip(runs, pieces, strict=True):
        q, k, v = (one[0].unflatten(1, (count, length)).transpose(0, 1) for one in piece)
        attended = flash_attention(
            q,
            k,
            v,
            causal=True,
            dropout=dropout,
            scale=scaling,
            window=attention_mask.window,
            softcap=softcap,
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None], None


def _check_row(
    module: Any,
    query: Tensor,
    mask: DocumentMask,
    lengths: Sequence[int] | None,
    window: int | None,
    others: dict[str, Any],
) -> Sequence[int]:
    """Return the lengths, when they make up the row and nothing else is asked for.

    Raises:
        EngineError: they do not, or something is.
    """
    if lengths is None or query.shape[0] != 1 or sum(lengths) != query.shape[2]:
        raise EngineError(
            f"documents of {lengths} tokens do not make up a packed batch of "
            f"{query.shape[0]} x {query.shape[2]}"
        )
    foreign = [name for name in _FOREIGN if others.get(name) is not None]
    is_causal = others.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        foreign.append("attention to later tokens")
    if mask.window != window:
        foreign.append(f"a window of {mask.window} in its mask and of {window} in its layer")
    if foreign:
        raise EngineError(
            f"{type(module).__name__} attends with {', '.join(foreign)}, which packed rows do not "
            "know",
            hint="leave out --packing",
        )
    return lengths


@contextmanager
def attending_by_document(model: Any) -> Iterator[None]:
    """Let a model take packed rows; its own attention is back afterwards.

    Args:
        model: a causal language model, with or without an adapter.

    Raises:
        ModelError: something in the model would let documents see each other.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    _refuse_other_layers(base)
    AttentionInterface.register(NAME, document_attention)
    AttentionMaskInterface.register(NAME, document_mask)
    before = base.config._attn_implementation
    base.set_attn_implementation(NAME)
    try:
        if base.config._attn_implementation != NAME:
            raise _refusal(base, "its attention cannot be exchanged")
        _require_blind(model, base)
        yield
    finally:
        base.set_attn_implementation(before)


def _refusal(base: Any, why: str) -> ModelError:
    return ModelError(
        f"--packing cannot be used with {base.config.model_type}: {why}",
        hint="leave out --packing; --tokens-per-batch saves padding with every model",
    )


def _refuse_other_layers(base: Any) -> None:
    """Refuse models that carry something from token to token beside attention.

    Raises:
        ModelError: such as a recurrent state, which would go on into the next document.
    """
    settings = base.config.get_text_config()
    others = sorted(set(getattr(settings, "layer_types", None) or ()) - KNOWN_LAYERS)
    if others:
        raise _refusal(base, f"it has layers of type {', '.join(others)}")
    if getattr(base, "_is_stateful", False):
        raise _refusal(base, "it carries a state from token to token")
    if settings is not base.config:
        raise _refusal(base, "it is no model of texts alone")


def _require_blind(model: Any, base: Any) -> None:
    """Try the model: a document must get the logits that it gets alone.

    Raises:
        ModelError: it does not.
    """
    device = base.get_input_embeddings().weight.device
    generator = torch.Generator().manual_seed(0)
    size = min(
        base.get_input_embeddings().weight.shape[0], base.config.get_text_config().vocab_size
    )
    first, second = (torch.randint(size, (1, n), generator=generator) for n in PROBE_LENGTHS)
    row = torch.cat([first, second], dim=1).to(device)
    places = torch.cat([torch.arange(n) for n in PROBE_LENGTHS])[None].to(device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            packed = model(
                input_ids=row,
                position_ids=places,
                document_lengths=PROBE_LENGTHS,
                use_cache=False,
            ).logits[:, PROBE_LENGTHS[0] :]
            alone = model(input_ids=second.to(device), use_cache=False).logits
    except (EngineError, TypeError) as error:
        raise _refusal(base, str(getattr(error, "message", error))) from error
    finally:
        model.train(was_training)
    moved = float((packed - alone).abs().max() / alone.abs().max())
    if not moved <= PROBE_TOLERANCE.get(alone.dtype, PROBE_TOLERANCE[torch.bfloat16]):
        raise _refusal(base, f"a document before another one moves its logits by {moved:.2g}")
