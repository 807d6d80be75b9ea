"""Quantised norms against float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.errors import EngineError
from mudpuppy.ops.gemm import qgemm
from mudpuppy.ops.levels import (
    Levels,
    dequantise,
    quantise_per_channel,
    quantise_per_tensor,
)
from mudpuppy.ops.norms import quantised_layer_norm, quantised_rms_norm


def exact_layer_norm(x, weight, bias, eps):
    x = x.double()
    centred = x - x.mean(dim=1, keepdim=True)
    y = centred / (centred.square().mean(dim=1, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight.double()
    return y if bias is None else y + bias.double()


def exact_rms_norm(x, weight, eps):
    x = x.double()
    y = x / (x.square().mean(dim=1, keepdim=True) + eps).sqrt()
    return y if weight is None else y * weight.double()


def assert_rounded(found: Levels, exact, symmetric):
    """The result is the exact one but for half a step, and what float32 and a tie cost."""
    assert found.values.shape == exact.shape
    off = (dequantise(found, torch.float64) - exact).abs()
    room = 0.5 if symmetric else 1.0
    peak = exact.abs().amax(dim=1, keepdim=True) if exact.numel() else exact
    assert bool((off <= found.scale.double() * room + peak * 1e-4 + 1e-30).all())


@pytest.mark.parametrize("norm", ["layer", "rms"])
@given(
    tokens=st.integers(0, 5),
    features=st.integers(2, 40),
    seed=st.integers(0, 2**16),
    exponent=st.integers(-60, 60),
    form=st.sampled_from(["fp32", "bf16", "by token", "by tensor"]),
    symmetric=st.tuples(st.booleans(), st.booleans()),
    scaled=st.booleans(),
)
def test_the_levels_are_those_of_the_exact_norm(
    norm, tokens, features, seed, exponent, form, symmetric, scaled
):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, features, generator=generator) * 2.0**exponent
    weight = torch.randn(features, generator=generator) if scaled else None
    bias = torch.randn(features, generator=generator) if scaled else None
    given = {
        "fp32": lambda: x,
        "bf16": lambda: x.bfloat16(),
        "by token": lambda: quantise_per_channel(x, 0, symmetric=symmetric[0]),
        "by tensor": lambda: quantise_per_tensor(x, symmetric=symmetric[0]),
    }[form]()
    seen = dequantise(given, torch.float64) if isinstance(given, Levels) else given
    if norm == "layer":
        found = quantised_layer_norm(given, weight, bias, symmetric=symmetric[1])
        exact = exact_layer_norm(seen, weight, bias, 1e-5)
    else:
        found = quantised_rms_norm(given, weight, symmetric=symmetric[1])
        exact = exact_rms_norm(seen, weight, 1e-6)
    assert_rounded(found, exact, symmetric[1])


@pytest.mark.parametrize("norm", [quantised_layer_norm, quantised_rms_norm])
@pytest.mark.parametrize("peak", [1e-44, 1e-38, 1e-20, 1e19, 3e38])
def test_neither_the_largest_nor_the_smallest_input_breaks_it(norm, peak):
    x = torch.tensor([[peak, -peak, peak / 2, 0.0]])
    back = dequantise(norm(x), torch.float64)
    exact = exact_layer_norm(x, None, None, 1e-5) if norm is quantised_layer_norm else None
    exact = exact_rms_norm(x, None, 1e-6) if exact is None else exact
    torch.testing.assert_close(back, exact, rtol=0.02, atol=0.01)


def test_rows_of_one_value_are_centred_to_zero():
    assert not quantised_layer_norm(torch.full((2, 4), 7.0)).values.any()
    assert not quantised_rms_norm(torch.zeros(2, 4)).values.any()


@pytest.mark.parametrize("value", [1e25, -3e38, 1e-40])
@pytest.mark.parametrize("eps", [1e-5, 1e-40])
def test_a_large_row_of_one_value_leaves_the_bias(value, eps):
    bias = torch.linspace(-1, 1, 8)
    found = quantised_layer_norm(torch.full((2, 8), value), torch.ones(8), bias, eps=eps)
    assert_rounded(found, bias.double().expand(2, 8), True)


def test_norm_and_product_chain_without_leaving_int8():
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(s, 64, generator=generator) for s in (5, 16))
    found = qgemm(quantised_rms_norm(quantise_per_channel(x)), quantise_per_channel(w))
    exact = exact_rms_norm(x, None, 1e-6) @ w.double().t()
    assert float((found.double() - exact).norm() / exact.norm()) < 0.02


def test_what_does_not_fit_is_refused():
    for x in (torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(2, 0)):
        with pytest.raises(EngineError, match="features"):
            quantised_rms_norm(x)
    with pytest.raises(EngineError, match="weight"):
        quantised_rms_norm(torch.ones(2, 3), torch.ones(4))
    with pytest.raises(EngineError, match="bias"):
        quantised_layer_norm(torch.ones(2, 3), None, torch.ones(1))
    with pytest.raises(EngineError, match="the input of a norm"):
        quantised_layer_norm(torch.tensor([[1.0, torch.nan]]))
