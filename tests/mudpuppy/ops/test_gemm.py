"""Products in int8 and fused linear layers against float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from mudpuppy.errors import EngineError
from mudpuppy.ops.gemm import fused_linear, qgemm
from mudpuppy.ops.levels import Levels, dequantise, quantise_per_channel, quantise_per_tensor

ACTIVATIONS = [None, "relu", "gelu", "silu"]
EXACT = {
    None: lambda z: z,
    "relu": lambda z: z.clamp(min=0),
    "gelu": lambda z: 0.5 * z * (1 + torch.erf(z / 2**0.5)),
    "silu": lambda z: z / (1 + torch.exp(-z)),
}
SIZES = st.integers(0, 40)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantised(x, by_row, symmetric):
    if by_row:
        return quantise_per_channel(x, 0, symmetric=symmetric)
    return quantise_per_tensor(x, symmetric=symmetric)


@given(
    sizes=st.tuples(SIZES, SIZES, SIZES),
    seed=st.integers(0, 2**16),
    by_row=st.tuples(st.booleans(), st.booleans()),
    symmetric=st.tuples(st.booleans(), st.booleans()),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
)
def test_a_product_is_that_of_the_dequantised_matrices(
    sizes, seed, by_row, symmetric, activation, bias
):
    m, k, n = sizes
    left = quantised(drawn(seed, m, k) + 0.5, by_row[0], symmetric[0])
    right = quantised(drawn(seed + 1, n, k) - 0.2, by_row[1], symmetric[1])
    b = drawn(seed + 2, n) if bias else None
    exact = dequantise(left, torch.float64) @ dequantise(right, torch.float64).t()
    exact = EXACT[activation](exact if b is None else exact + b.double())
    found = qgemm(left, right, bias=b, activation=activation)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 1024, 1025, 33_026, 131_072])
def test_the_largest_sums_are_exact(k):
    """Every level as far from its zero point as it can be: 255 * 255 * k."""
    left = Levels(
        torch.full((2, k), 127, dtype=torch.int8),
        torch.ones(1, 1),
        torch.full((1, 1), -128, dtype=torch.int32),
    )
    right = Levels(
        torch.full((3, k), -128, dtype=torch.int8),
        torch.ones(3, 1),
        torch.full((3, 1), 127, dtype=torch.int32),
    )
    assert torch.equal(
        qgemm(left, right, dtype=torch.float64),
        torch.full((2, 3), -255.0 * 255 * k, dtype=torch.float32).double(),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_result_is_rounded_once(dtype):
    left, right = quantise_per_channel(drawn(0, 5, 64)), quantise_per_channel(drawn(1, 7, 64))
    found = qgemm(left, right, bias=drawn(2, 7).to(dtype), dtype=dtype)
    assert torch.equal(found, qgemm(left, right, bias=drawn(2, 7).to(dtype)).to(dtype))


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(3, 4), (5,), (), (0,)])
def test_a_fused_layer_has_the_gradients_of_its_parts(activation, bias, rows):
    leaves = [drawn(0, *rows, 6), drawn(1, 8, 6)] + ([drawn(2, 8)] if bias else [])
    leaves = [leaf.double().requires_grad_() for leaf in leaves]

    def fused(x, w, b=None):
        return fused_linear(x, w, b, activation)

    exact = EXACT[activation](functional.linear(*leaves))
    torch.testing.assert_close(fused(*leaves), exact)
    assert torch.autograd.gradcheck(fused, leaves)
    grads = torch.autograd.grad(fused(*leaves).sum(), leaves, create_graph=True)
    total = sum(one.sum() for one in grads)
    with pytest.raises(RuntimeError, match="does not require grad"):
        total.backward()


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_autocast_decides_the_type_and_gradients_keep_theirs(activation):
    x, w, b = (drawn(i, *s).requires_grad_() for i, s in enumerate([(4, 6), (8, 6), (8,)]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fused_linear(x, w, b, activation)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    exact = [leaf.detach().double().requires_grad_() for leaf in (x, w, b)]
    EXACT[activation](functional.linear(*exact)).sum().backward()
    for leaf, wanted in zip((x, w, b), exact, strict=True):
        assert leaf.grad.dtype == torch.float32
        torch.testing.assert_close(leaf.grad.double(), wanted.grad, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [(2, 3), (4,), (), (0,)])
def test_an_int8_weight_takes_tokens_rounded_as_they_come(activation, rows):
    x, w, b = drawn(0, *rows, 64), drawn(1, 16, 64), drawn(2, 16)
    levels = quantise_per_channel(w)
    found = fused_linear(x, levels, b, activation)
    tokens = dequantise(quantise_per_channel(x.reshape(-1, 64)), torch.float64)
    exact = functional.linear(tokens, dequantise(levels, torch.float64), b.double())
    torch.testing.assert_close(
        found.double(), EXACT[activation](exact).view(*rows, 16), rtol=1e-5, atol=1e-5
    )
    plain = EXACT[activation](functional.linear(x.double(), w.double(), b.double()))
    if plain.numel():
        assert float((found.double() - plain).norm() / plain.norm()) < 0.02


def test_what_does_not_fit_is_refused():
    one = quantise_per_channel(drawn(0, 4, 8))
    for left, right in (
        (one, quantise_per_channel(drawn(1, 4, 9))),
        (quantise_per_channel(drawn(1, 4, 8), 1), one),
        (quantise_per_tensor(drawn(1, 8)), one),
    ):
        with pytest.raises(EngineError, match=r"expected|do not fit"):
            qgemm(left, right)
    with pytest.raises(EngineError, match="bias"):
        qgemm(one, one, bias=torch.zeros(3))
    with pytest.raises(EngineError, match="tanh"):
        qgemm(one, one, activation="tanh")
    with pytest.raises(EngineError, match="tanh"):
        fused_linear(drawn(0, 2, 8), drawn(1, 3, 8), None, "tanh")
    with pytest.raises(EngineError, match="product"):
        fused_linear(drawn(0, 2, 8), drawn(1, 3, 9))
    with pytest.raises(EngineError, match="NaN"):
        fused_linear(torch.full((2, 8), torch.nan), one)
