"""Fake quantisation: the grid by hand, gradients in float64, and a run that learns."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mudpuppy.errors import EngineError
from mudpuppy.quant import int_sums
from mudpuppy.quant.fake_quant import (
    FakeQuantLinear,
    fake_quant_linear,
    fake_quantised,
    find_quantised,
)
from mudpuppy.quant.int8_matrix import (
    Int8Rows,
    multiply,
    quantise_weight,
    relative_error,
    round_rows,
)
from mudpuppy.quant.int_sums import EXACT_IN_FP32
from tests.mudpuppy.quant.tiny_llama import make_ids, make_llama


@given(seed=st.integers(0, 2**16), exponent=st.integers(-100, 100))
def test_rounding_takes_the_nearest_level(seed, exponent):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(4, 30, generator=generator) * 2.0**exponent
    levels, scales = round_rows(w)
    assert torch.equal(levels, levels.round())
    assert torch.equal(levels.abs().amax(dim=1), torch.full((4,), 127.0))
    # half a step, and the part in 2**23 that the quotient is rounded by
    distance = (levels.double() * scales.double() - w.double()).abs()
    assert bool((distance <= scales.double() * (0.5 + 1e-4)).all())


def test_a_zero_row_stays_zero_and_nan_stays_nan():
    levels, scales = round_rows(torch.tensor([[0.0, 0.0], [float("nan"), 1.0]]))
    assert scales[0] == 1
    assert not levels[0].any()
    assert bool(levels[1].isnan().any())
    with pytest.raises(EngineError, match="NaN"):
        quantise_weight(torch.tensor([[float("nan")]]))


@pytest.mark.parametrize("inner", [7, EXACT_IN_FP32, EXACT_IN_FP32 + 1, 5000])
def test_the_sum_is_exact_whatever_computes_it(inner, monkeypatch):
    """The worst case: every level at the end of the grid, so the sum is as large as it can be."""
    left = Int8Rows(torch.full((3, inner), 127.0), torch.full((3, 1), 0.5))
    right = Int8Rows(torch.full((2, inner), -127, dtype=torch.int8), torch.full((2, 1), 0.25))
    right.levels[0, ::3] = 126
    wanted = (left.levels.double() @ right.levels.double().t()) * 0.125
    found = multiply(left, right, torch.float64)
    assert torch.equal(found, wanted.float().double())
    monkeypatch.setitem(int_sums._CHECKED, "cpu", False)
    assert torch.equal(multiply(left, right, torch.float64), found)


@pytest.mark.parametrize("rows", [(3, 5), (4,), ()])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_is_the_rounded_product_and_gradients_pass_straight_through(rows, bias):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*rows, 24, generator=generator, requires_grad=True)
    w = torch.randn(16, 24, generator=generator, requires_grad=True)
    b = torch.randn(16, generator=generator, requires_grad=True) if bias else None
    g = torch.randn(*rows, 16, generator=generator)
    y = fake_quant_linear(x, w, b)
    y.backward(g)
    qx = round_rows(x.reshape(-1, 24)).dequantise().double().view(*rows, 24)
    qw = round_rows(w).dequantise().double()
    exact = nn.functional.linear(qx, qw, None if b is None else b.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), g.double() @ qw, rtol=1e-5, atol=1e-5)
    wanted = g.double().reshape(-1, 16).t() @ qx.reshape(-1, 24)
    torch.testing.assert_close(w.grad.double(), wanted, rtol=1e-5, atol=1e-5)
    if b is not None:
        torch.testing.assert_close(b.grad, g.reshape(-1, 16).sum(0), rtol=1e-6, atol=1e-6)


def test_autocast_decides_the_type_of_the_result():
    x, w = torch.randn(2, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fake_quant_linear(x, w, None)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert (x.grad.dtype, w.grad.dtype) == (torch.float32, torch.float32)


def test_the_layers_of_the_blocks_change_and_come_back():
    model = make_llama(bias=True)
    wanted = list(find_quantised(model))
    plain = model(make_ids()).logits
    before = {name: (type(m), set(vars(m))) for name, m in model.named_modules()}
    with fake_quantised(model) as names:
        inside = {name for name, m in model.named_modules() if isinstance(m, FakeQuantLinear)}
        assert inside == set(names)
        assert names == wanted
        assert len(names) == 14
        assert "lm_head" not in names
        rounded = model(make_ids()).logits
    assert 0 < float((rounded - plain).detach().norm() / plain.detach().norm()) < 0.1
    assert {name: (type(m), set(vars(m))) for name, m in model.named_modules()} == before
    assert torch.equal(model(make_ids()).logits, plain)


def test_training_in_the_block_makes_the_rounded_model_good():
    """The loss falls to less than half, and is the loss of the rounded weights."""
    model = make_llama(spread=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = make_ids(4, 12)
    seen = []
    with fake_quantised(model):
        for _ in range(30):
            loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(float(loss.detach()))
    assert seen[-1] < seen[0] / 2


def test_the_relative_error_is_that_of_the_norms():
    w = torch.tensor([[127.0, 0.5]])  # 0.5 is rounded to even: 0
    assert relative_error(w, quantise_weight(w)) == pytest.approx(0.5 / (127.0**2 + 0.25) ** 0.5)
    assert relative_error(torch.zeros(2, 2), quantise_weight(torch.zeros(2, 2))) == 0
