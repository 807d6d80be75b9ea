"""Attention equals a reference in float64, with every mask, shape and bound."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mudpuppy.attention.flash import FlashMHA, flash_attention
from mudpuppy.errors import EngineError


def reference(query, key, value, *, allowed=None, added=None, scale=None, softcap=None):
    """Attention, one query at a time, in float64."""
    shared = query.shape[1] // key.shape[1]
    output = torch.zeros(*query.shape[:3], value.shape[3], dtype=torch.float64)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for q in range(query.shape[2]):
                scores = key[b, h // shared] @ query[b, h, q] * factor
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                if added is not None:
                    scores = scores + added[q]
                seen = [k for k in range(key.shape[2]) if allowed is None or allowed(q, k)]
                if seen:
                    weights = torch.exp(scores[seen] - scores[seen].max())
                    output[b, h, q] = weights / weights.sum() @ value[b, h // shared][seen]
    return output


def tensors(*, batch=2, heads=4, key_heads=2, queries=7, keys=7, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return (
        torch.randn(batch, heads, queries, 8, dtype=dtype),
        torch.randn(batch, key_heads, keys, 8, dtype=dtype),
        torch.randn(batch, key_heads, keys, 6 if dtype == torch.float64 else 8, dtype=dtype),
    )


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_plain_and_grouped(key_heads: int, softcap: float | None):
    q, k, v = tensors(key_heads=key_heads)

    out = flash_attention(q, k, v, scale=0.7, softcap=softcap)

    torch.testing.assert_close(out, reference(q, k, v, scale=0.7, softcap=softcap))


@settings(max_examples=25, deadline=None)
@given(
    queries=st.integers(1, 9),
    cached=st.integers(0, 4),
    window=st.none() | st.integers(1, 12),
    softcap=st.none() | st.just(2.0),
    seed=st.integers(0, 99),
)
def test_causal_with_cache_and_window(queries, cached, window, softcap, seed):
    q, k, v = tensors(batch=1, queries=queries, keys=queries + cached, seed=seed)

    def allowed(i, j):
        behind = i + cached - j
        return behind >= 0 and (window is None or behind < window)

    out = flash_attention(q, k, v, causal=True, window=window, softcap=softcap)

    torch.testing.assert_close(out, reference(q, k, v, allowed=allowed, softcap=softcap))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_narrow_what_causal_leaves(kind, causal, window, softcap):
    if window and not causal:
        return
    q, k, v = tensors()
    on = torch.rand(7, 7) > 0.4
    on[:, 0] = True
    added = torch.randn(7, 7, dtype=torch.float64)

    def allowed(i, j):
        bounded = not causal or (j <= i and (window is None or i - j < window))
        return bounded and (kind == "float" or bool(on[i, j]))

    out = flash_attention(
        q, k, v, mask=on if kind == "bool" else added, causal=causal, window=window, softcap=softcap
    )

    expected = reference(
        q, k, v, allowed=allowed, added=added if kind == "float" else None, softcap=softcap
    )
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_query_that_may_look_at_nothing_gets_zeros(softcap):
    q, k, v = tensors()
    mask = torch.ones(7, 7, dtype=torch.bool)
    mask[3] = False

    out = flash_attention(q, k, v, mask=mask, softcap=softcap)

    assert bool((out[:, :, 3] == 0).all())
    assert bool(out.isfinite().all())


def test_gradients_through_the_blocks_of_a_window():
    q, k, v = (t.requires_grad_() for t in tensors(batch=1, queries=11, keys=11))
    places = torch.arange(11)
    behind = places[:, None] - places

    flash_attention(q, k, v, causal=True, window=3).square().sum().backward()
    ours = [t.grad.clone() for t in (q, k, v)]
    for t in (q, k, v):
        t.grad = None
    flash_attention(q, k, v, mask=(behind >= 0) & (behind < 3)).square().sum().backward()

    for mine, t in zip(ours, (q, k, v), strict=True):
        torch.testing.assert_close(mine, t.grad)


def test_dropout_zero_is_none_and_one_half_drops():
    q, k, v = tensors(dtype=torch.float32)

    torch.testing.assert_close(flash_attention(q, k, v, dropout=0.0), flash_attention(q, k, v))
    assert not torch.allclose(flash_attention(q, k, v, dropout=0.5), flash_attention(q, k, v))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"query": torch.zeros(2, 3, 7, 8)}, "cannot combine"),
        ({"key": torch.zeros(2, 2, 6, 8)}, "cannot combine"),
        ({"value": torch.zeros(2, 7, 8)}, "takes"),
        ({"window": 3}, "needs causal"),
        ({"window": 0, "causal": True}, "at least one"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    q, k, v = tensors(dtype=torch.float32)

    with pytest.raises(EngineError, match=said):
        flash_attention(**{"query": q, "key": k, "value": v, **change})


@pytest.mark.parametrize("causal", [True, False])
def test_the_module_equals_torchs_own(causal: bool):
    torch.manual_seed(1)
    ours = FlashMHA(32, 4, causal=causal).double()
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True).double()
    with torch.no_grad():
        parts = (ours.q_proj, ours.k_proj, ours.v_proj)
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.out_proj = ours.out_proj
    hidden = torch.randn(2, 5, 32, dtype=torch.float64)
    keep = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    future = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None

    expected, _ = theirs(
        hidden, hidden, hidden, key_padding_mask=~keep, attn_mask=future, need_weights=False
    )

    torch.testing.assert_close(ours(hidden, key_mask=keep), expected)


def test_the_module_groups_its_queries_and_drops_in_training_only():
    torch.manual_seed(1)
    module = FlashMHA(32, 4, num_key_value_heads=2, causal=True, dropout=0.5, window=3)
    hidden = torch.randn(2, 6, 32)

    assert (16, 32) == tuple(module.k_proj.weight.shape)
    assert not torch.equal(module.train()(hidden), module(hidden))
    assert torch.equal(module.eval()(hidden), module(hidden))
    with pytest.raises(EngineError, match="do not divide"):
        FlashMHA(32, 5)
