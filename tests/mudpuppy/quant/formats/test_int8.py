"""The int8 packing keeps its bound, and its definition can be written again in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mudpuppy.config_check import load_config
from mudpuppy.errors import ConfigError
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.formats.selftest import relative_error

FORM = FORMATS["int8"]
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 150), st.sampled_from([1, 7, 16, 64, 128]))
SCALES = st.sampled_from([1e-40, 1e-30, 1e-3, 1.0, 300.0, 1e30])


def gaussian(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def in_numpy(weight: np.ndarray, block_size: int) -> np.ndarray:
    """The definition of the module docstring, written without looking at the code."""
    value = np.zeros_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], block_size):
            block = weight[row, start : start + block_size]
            scale = np.float32(np.abs(block).max() / np.float32(127))
            if scale > 0:
                level = np.clip(np.rint(block / scale), -127, 127).astype(np.int8)
                value[row, start : start + block_size] = level.astype(np.float32) * scale
    return value


@settings(max_examples=60, deadline=None)
@given(SHAPES, SCALES, st.integers(0, 2**31))
def test_every_value_lies_within_half_a_scale_of_its_weight(shape, scale, seed):
    rows, columns, block_size = shape
    weight = gaussian(rows, columns, seed) * scale
    packed = FORM.quantise(weight, block_size)
    error = (weight - FORM.dequantise(packed)).abs()
    bound = packed.scales.repeat_interleave(block_size, dim=1)[:, :columns] / 2
    # float32 rounds level * scale, and subnormal scales are known to one unit of 1.4e-45 only
    assert bool((error <= bound * (1 + 1e-4) + weight.abs() * 1e-6 + 127 * 1.4e-45).all())


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 2**31))
def test_a_numpy_rewrite_of_the_definition_gives_the_same_bits(shape, seed):
    rows, columns, block_size = shape
    weight = gaussian(rows, columns, seed)
    weight[0, : columns // 2] = 0.0
    value = FORM.dequantise(FORM.quantise(weight, block_size)).numpy()
    assert np.array_equal(value, in_numpy(weight.numpy(), block_size))


def test_a_byte_is_its_level():
    packed = FORM.quantise(torch.tensor([[1.27, -1.27, 0.0, 0.01, -0.02]]), 64)

    assert [[127, -127, 0, 1, -2]] == packed.qweight.view(torch.int8).tolist()
    assert [float(FORM.levels[code]) for code in packed.qweight[0]] == [127, -127, 0, 1, -2]


def test_its_error_is_far_below_that_of_any_format_of_4_bits():
    weight = gaussian(256, 512)
    errors = {
        name: relative_error(FORMATS[name].dequantise(FORMATS[name].quantise(weight)), weight)
        for name in ("int8", "nf4", "int4", "mxfp4")
    }

    assert errors["int8"] < min(errors[name] for name in ("nf4", "int4", "mxfp4")) / 12
    assert abs(errors["int8"] - FORM.gaussian_error) < 2e-4


def test_quantising_a_second_time_changes_nothing():
    once = FORM.dequantise(FORM.quantise(gaussian(8, 100), 32))
    assert torch.equal(FORM.dequantise(FORM.quantise(once, 32)), once)


def test_the_scheme_names_what_a_reader_needs():
    said = {"scheme": "int8-symmetric-blockwise", "bits": 8, "block_size": 32}
    assert FORM.describe(32) == said


def test_there_is_nothing_to_search(tmp_path):
    with pytest.raises(ConfigError, match="int8 has nothing to search"):
        load_config(
            {
                "model": "tiny",
                "dataset": tmp_path,
                "output": tmp_path,
                "method": "qlora",
                "quant": "int8",
                "quant_search": 4,
            }
        )
