"""`flash_attention` and `FlashMHA`: exact attention on CPU, CUDA and ROCm without FlashAttention.

The names are those of the first release (seed 001, `rocm_attn`). PyTorch picks its fused kernel by
itself wherever there is one, and computes the same numbers without it elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mudpuppy.errors import EngineError


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return softmax(scale * query @ key^T) @ value.

    Fewer key heads than query heads are shared by consecutive query heads (grouped queries). A
    query that may look at nothing gets zeros.

    Args:
        query: [batch, heads, queries, head_dim].
        key: [batch, key_heads, keys, head_dim]; `heads` is a multiple of `key_heads`.
        value: [batch, key_heads, keys, value_dim].
        mask: broadcastable to [batch, heads, queries, keys]; true where a query may look, or a
            number that is added to its score.
        causal: let each query look at the keys up to its own place only. The last query stands at
            the last key, so that it is also right when the first keys come from a cache.
        dropout: share of the weights that are dropped.
        scale: by default 1 / sqrt(head_dim).
        window: let each query look at the last `window` keys up to its own only; needs `causal`.
        softcap: cap scores to this by a tanh (Gemma 2); memory then grows with queries x keys.

    Returns:
        [batch, heads, queries, value_dim].

    Raises:
        EngineError: the shapes do not fit, or a window is asked for without `causal`.
    """
    _check(query, key, value, causal, window)
    queries, keys = query.shape[-2], key.shape[-2]
    if window is not None and keys > window:
        if mask is None and queries == keys:
            return _windowed(query, key, value, window, dropout, scale, softcap)
        mask = _narrow(mask, _band(queries, keys, window, query.device))
    elif causal and (mask is not None or queries != keys or softcap is not None):
        mask = _narrow(mask, _band(queries, keys, keys, query.device))
    if softcap is not None:
        return _capped(query, key, value, mask, dropout, scale, softcap)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal and mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _check(query: Tensor, key: Tensor, value: Tensor, causal: bool, window: int | None) -> None:
    """Refuse shapes that do not fit: broadcasting would take some of them and mean another thing.

    Raises:
        EngineError: with what was expected.
    """
    shapes = f"query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}"
    if {query.dim(), key.dim(), value.dim()} != {4}:
        raise EngineError(f"attention takes [batch, heads, length, head_dim], got {shapes}")
    fits = (
        query.shape[0] == key.shape[0] == value.shape[0]
        and query.shape[1] % key.shape[1] == 0
        and key.shape[1:3] == value.shape[1:3]
        and query.shape[3] == key.shape[3]
    )
    if not fits:
        raise EngineError(f"attention cannot combine {shapes}")
    if window is not None and not (causal and window >= 1):
        raise EngineError(f"a window of {window} needs causal attention and at least one key")


def _band(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """Return [queries, keys]: true for the last `window` keys up to each query's own."""
    places = torch.arange(keys - queries, keys, device=device)[:, None]
    behind = places - torch.arange(keys, device=device)
    return (behind >= 0) & (behind < window)


def _narrow(mask: Tensor | None, allowed: Tensor) -> Tensor:
    """Return the mask with everything else than `allowed` shut off."""
    if mask is None:
        return allowed
    if mask.dtype == torch.bool:
        return mask & allowed
    return torch.where(allowed, mask, float("-inf"))


def _windowed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    dropout: float,
    scale: float | None,
    softcap: float | None,
) -> Tensor:
    """Attend block by block of `window` queries, each to at most 2 windows of keys.

    The mask of a block is [window, 2 window], whatever the length.
    """
    blocks = []
    for start in range(0, query.shape[-2], window):
        stop = min(start + window, query.shape[-2])
        first = max(0, start - window + 1)
        allowed = _band(stop - start, stop - first, window, query.device)
        blocks.append(
            flash_attention(
                query[..., start:stop, :],
                key[..., first:stop, :],
                value[..., first:stop, :],
                mask=allowed,
                dropout=dropout,
                scale=scale,
                softcap=softcap,
            )
        )
    return torch.cat(blocks, dim=-2)


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scale: float | None,
    softcap: float,
) -> Tensor:
    """Attend with capped scores, which no fused kernel of PyTorch knows."""
    shared = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(shared, dim=1) for one in (key, value))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = softcap * torch.tanh(query @ key.transpose(-2, -1) * (factor / softcap))
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask
    weights = torch.softmax(
        scores, dim=-1, dtype=torch.float32 if scores.dtype.itemsize < 4 else None
    )
    weights = weights.masked_fill((scores == float("-inf")).all(dim=-1, keepdim=True), 0.0)
    return F.dropout(weights.to(value.dtype), dropout) @ value


class FlashMHA(nn.Module):
    """Multi-head self-attention with learnt projections.

    Args:
        embed_dim: width of the input and the output.
        num_heads: query heads; divides `embed_dim`.
        num_key_value_heads: key heads; divides `num_heads`, and is equal to it by default.
        bias: whether the projections have one.
        dropout: share of the attention weights that are dropped while training.
        causal: whether each position looks at itself and those before it only.
        window: how far it looks, where that is bounded.

    Raises:
        EngineError: the numbers do not divide each other.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_key_value_heads: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        causal: bool = False,
        window: int | None = None,
    ) -> None:
        super().__init__()
        key_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        if embed_dim % num_heads or num_heads % key_heads:
            raise EngineError(
                f"{embed_dim} features, {num_heads} heads and {key_heads} key heads do not divide "
                "each other",
                hint="choose heads that divide embed_dim, and key heads that divide the heads",
            )
        self.head_dim = embed_dim // num_heads
        self.dropout = dropout
        self.causal = causal
        self.window = window
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.k_proj = nn.Linear(embed_dim, key_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(embed_dim, key_heads * self.head_dim, bias=bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)

    def forward(self, hidden: Tensor, *, key_mask: Tensor | None = None) -> Tensor:
        """Attend within each row.

        Args:
            hidden: [batch, length, embed_dim].
            key_mask: [batch, length], true for real tokens and false for padding.

        Returns:
            [batch, length, embed_dim].
        """
        split = (*hidden.shape[:2], -1, self.head_dim)
        query, key, value = (
            project(hidden).view(split).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = flash_attention(
            query,
            key,
            value,
            mask=None if key_mask is None else key_mask[:, None, None, :],
            causal=self.causal,
            dropout=self.dropout if self.training else 0.0,
            window=self.window,
        )
        output: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return output
