"""Quantised tensors against a re-implementation in numpy's float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.errors import EngineError
from mudpuppy.ops.levels import (
    dequantise,
    fake_quantise,
    quantise_per_channel,
    quantise_per_tensor,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = st.lists(st.integers(0, 6), min_size=0, max_size=3).map(tuple)


def tensors(shape, seed, exponent, dtype):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * 2.0**exponent
    return drawn.to(dtype)


def reference(x, over, *, symmetric):
    """Return step, zero point and largest error of each value's nearest level, in float64."""
    x = x.double().numpy()
    if x.size == 0:
        shape = [1 if i in over else n for i, n in enumerate(x.shape)]
        return np.ones(shape), np.zeros(shape)
    if symmetric:
        peak = np.abs(x).max(axis=over, keepdims=True)
        return np.where(peak == 0, 1.0, np.maximum(peak / 127, 2.0**-126)), np.zeros_like(peak)
    low = np.minimum(x.min(axis=over, keepdims=True), 0)
    high = np.maximum(x.max(axis=over, keepdims=True), 0)
    step = np.where(high == low, 1.0, np.maximum((high - low) / 255, 2.0**-126))
    return step, np.clip(np.rint(-128 - low / step), -128, 127)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=SHAPES, seed=st.integers(0, 2**16), exponent=st.integers(-12, 12))
def test_every_value_gets_its_nearest_level(symmetric, dtype, shape, seed, exponent):
    x = tensors(shape, seed, exponent, dtype)
    for axis in [None, *range(len(shape))]:
        if axis is None:
            found = quantise_per_tensor(x, symmetric=symmetric)
        else:
            found = quantise_per_channel(x, axis, symmetric=symmetric)
        over = tuple(i for i in range(len(shape)) if i != axis)
        step, zero = reference(x, over, symmetric=symmetric)
        assert found.values.dtype == torch.int8
        assert found.values.shape == x.shape
        assert tuple(found.scale.shape) == step.shape
        np.testing.assert_allclose(found.scale.numpy(), step, rtol=1e-6)
        if not symmetric and x.numel():
            # a quotient that lies on a tie may be rounded to either side in float32
            assert np.abs(found.zero.numpy() - zero).max() <= 1
        back = dequantise(found, torch.float64).numpy()
        # half a step; one that the zero point's rounding moved may lie half a step outside
        room = 0.5 if symmetric else 1.0
        assert (np.abs(back - x.double().numpy()) <= step * (room + 1e-4)).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("peak", [1e-44, 2.0**-126, 1e-20, 1.0, 1e30, 3.4e38])
def test_the_largest_and_smallest_numbers_fit(symmetric, peak):
    x = torch.tensor([peak, -peak, 0.0])
    back = dequantise(quantise_per_tensor(x, symmetric=symmetric))
    assert bool(back.isfinite().all())
    assert back[2] == 0
    # half a step each way, and what is below the smallest scale
    torch.testing.assert_close(back, x, rtol=1 / 127, atol=2.0**-126)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("axis", [None, 0])
def test_the_largest_numbers_of_a_type_stay_numbers_of_it(symmetric, dtype, axis):
    largest = torch.finfo(dtype).max
    x = torch.tensor([[largest, -largest, 1.0]], dtype=dtype)
    back = fake_quantise(x, axis, symmetric=symmetric)
    assert back.dtype == dtype
    assert bool(back.isfinite().all())
    torch.testing.assert_close(back.double(), x.double(), rtol=1 / 127, atol=largest / 127)


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_is_exact_and_a_range_of_nothing_has_scale_one(symmetric):
    found = quantise_per_channel(torch.tensor([[0.0, 0.0], [0.0, 3.0]]), 0, symmetric=symmetric)
    assert found.scale[0] == 1
    assert not dequantise(found)[:, 0].any()
    assert not dequantise(found)[0].any()
    assert quantise_per_tensor(torch.zeros(0, 3), symmetric=symmetric).values.shape == (0, 3)


def test_asymmetric_levels_spend_none_on_what_does_not_occur():
    """All values at or above 0: 255 steps instead of 127, so half the error."""
    x = torch.rand(4096, generator=torch.Generator().manual_seed(0))
    error = {
        kind: float((dequantise(quantise_per_tensor(x, symmetric=kind)) - x).norm())
        for kind in (True, False)
    }
    assert error[False] == pytest.approx(error[True] / 2, rel=0.05)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_the_gradient_of_rounding_is_taken_for_one(axis):
    x = torch.randn(3, 5, requires_grad=True)
    weights = torch.randn(3, 5)
    y = fake_quantise(x, axis, symmetric=axis == 0)
    (y * weights).sum().backward()
    assert torch.equal(x.grad, weights)
    assert not torch.equal(y, x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_no_level_can_tell_is_refused(bad):
    with pytest.raises(EngineError, match="NaN"):
        quantise_per_tensor(torch.tensor([1.0, bad]))


def test_another_type_or_axis_is_refused():
    with pytest.raises(EngineError, match="int64"):
        quantise_per_tensor(torch.arange(3))
    for x, axis in ((torch.zeros(2, 2), 2), (torch.zeros(2, 2), -3), (torch.tensor(1.0), 0)):
        with pytest.raises(EngineError, match="axis"):
            quantise_per_channel(x, axis)
