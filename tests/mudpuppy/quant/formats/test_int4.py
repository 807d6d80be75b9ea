"""The int4 packing keeps its bound, and its definition can be written again in numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mudpuppy.errors import EngineError
from mudpuppy.quant.formats import FORMATS

FORM = FORMATS["int4"]
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 150), st.sampled_from([1, 7, 16, 32, 64, 128]))
SCALES = st.sampled_from([1e-40, 1e-30, 1e-3, 1.0, 300.0, 1e30])


def dequantize_in_numpy(weight: np.ndarray, block_size: int) -> np.ndarray:
    """The definition of the module docstring, written without looking at the code."""
    value = np.zeros_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], block_size):
            block = weight[row, start : start + block_size]
            scale = np.float32(np.abs(block).max() / np.float32(7))
            if scale > 0:
                level = np.clip(np.rint(block / scale), -7, 7).astype(np.float32)
                value[row, start : start + block_size] = level * scale
    return value


@settings(max_examples=60, deadline=None)
@given(SHAPES, SCALES, st.integers(0, 2**31))
def test_every_value_lies_within_half_a_scale_of_its_weight(shape, scale, seed):
    rows, columns, block_size = shape
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    packed = FORM.quantise(weight, block_size)
    error = (weight - FORM.dequantise(packed)).abs()
    bound = packed.scales.repeat_interleave(block_size, dim=1)[:, :columns] / 2
    # float32 rounds level * scale, and subnormal scales are known to one unit of 1.4e-45 only
    assert bool((error <= bound * (1 + 1e-5) + weight.abs() * 1e-6 + 8e-45).all())


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 2**31))
def test_a_numpy_rewrite_of_the_definition_gives_the_same_bits(shape, seed):
    rows, columns, block_size = shape
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[0, : columns // 2] = 0.0
    value = FORM.dequantise(FORM.quantise(weight, block_size)).numpy()
    assert np.array_equal(value, dequantize_in_numpy(weight.numpy(), block_size))


@settings(max_examples=30, deadline=None)
@given(SHAPES)
def test_the_packed_form_has_the_size_that_is_declared(shape):
    rows, columns, block_size = shape
    packed = FORM.quantise(torch.ones(rows, columns), block_size)
    assert packed.qweight.dtype == torch.uint8
    assert packed.qweight.shape == (rows, math.ceil(columns / 2))
    assert packed.scales.dtype == torch.float32
    assert packed.scales.shape == (rows, math.ceil(columns / block_size))


def test_the_even_column_is_the_low_nibble_and_zero_is_eight():
    packed = FORM.quantise(torch.tensor([[7.0, -7.0, 0.0]]), 64)
    assert packed.qweight.tolist() == [[15 | 1 << 4, 8 | 8 << 4]]


def test_quantising_a_second_time_changes_nothing():
    once = FORM.dequantise(FORM.quantise(torch.randn(8, 100), 32))
    assert torch.equal(FORM.dequantise(FORM.quantise(once, 32)), once)


def test_a_gaussian_loses_a_tenth_of_its_norm():
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    error = (FORM.dequantise(FORM.quantise(weight, 64)) - weight).norm() / weight.norm()
    assert 0.09 < float(error) < 0.115


def test_an_outlier_spoils_its_own_block_only():
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    plain = FORM.dequantise(FORM.quantise(weight, 64))
    weight[0, 70] = 1000.0
    spoilt = FORM.dequantise(FORM.quantise(weight, 64))
    same = plain == spoilt
    assert bool(same[1:].all())
    assert bool(same[0, :64].all())
    assert bool(same[0, 128:].all())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused_with_its_count(value):
    weight = torch.ones(3, 5)
    weight[1, 2] = value
    with pytest.raises(EngineError, match="1 of 15 weights are NaN or infinite"):
        FORM.quantise(weight)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 4), (4, 0)])
def test_what_is_not_a_matrix_is_refused(shape):
    with pytest.raises(ValueError, match="expected a matrix"):
        FORM.quantise(torch.ones(shape))


def test_a_block_size_of_zero_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        FORM.quantise(torch.ones(2, 2), 0)


def test_the_scheme_names_what_a_reader_needs():
    said = {"scheme": "int4-symmetric-blockwise", "bits": 4, "block_size": 32}
    assert FORM.describe(32) == said
    assert FORM.describe(32, 8) == {**said, "search": 8}
