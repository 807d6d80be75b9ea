"""MXFP4: elements and scales are those of ml_dtypes, which is not ours."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.formats.selftest import relative_error

FORM = FORMATS["mxfp4"]


def round_in_numpy(blocks: np.ndarray) -> np.ndarray:
    """The definition, with ml_dtypes' rounding to E2M1: the better of two exponents."""
    made = np.zeros_like(blocks)
    for number, block in enumerate(blocks):
        peak = float(np.abs(block).max())
        exponent = int(np.clip(np.floor(np.log2(peak)) - 2, -127, 125)) if peak else 0
        tried = []
        for one in (exponent, min(exponent + 1, 125)):
            scaled = (block.astype(np.float64) / 2.0**one).clip(-6, 6)
            rounded = scaled.astype(ml_dtypes.float4_e2m1fn).astype(np.float64) * 2.0**one
            tried.append((((rounded - block) ** 2).sum(), rounded))
        made[number] = tried[1][1] if tried[1][0] < tried[0][0] else tried[0][1]
    return made


def test_the_levels_are_the_numbers_of_e2m1():
    codes = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert tuple(codes.tolist()) == FORM.levels


def test_the_scales_are_the_powers_of_e8m0():
    stored = torch.arange(255, dtype=torch.uint8)
    expected = stored.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    assert np.array_equal(FORM.scale_values(stored).numpy(), expected)
    assert bool(FORM.scale_values(torch.tensor([255], dtype=torch.uint8)).isnan())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.0, 1e-40, 1e-30, 1e-3, 1.0, 1e20, 1e38]),
    st.booleans(),
)
def test_a_numpy_rewrite_of_the_definition_gives_the_same_bits(seed, scale, coarse):
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)
    if coarse:  # multiples of a quarter lie between two levels
        weight = (weight * 4).round() / 4
    weight = weight * scale
    value = FORM.dequantise(FORM.quantise(weight))
    assert np.array_equal(value.numpy(), round_in_numpy(weight.numpy()))


def test_the_better_exponent_beats_the_standards_own():
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    blocks = weight.view(-1, 32).numpy()
    low = np.floor(np.log2(np.abs(blocks).max(1, keepdims=True))) - 2
    scaled = (blocks / 2.0**low).clip(-6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    standard = relative_error(torch.from_numpy(scaled * 2.0**low).view_as(weight), weight)
    ours = relative_error(FORM.dequantise(FORM.quantise(weight)), weight)
    assert standard == pytest.approx(0.1141, abs=1e-3)
    assert ours <= 0.985 * standard


def test_other_blocks_than_the_standards_are_refused():
    with pytest.raises(ValueError, match="blocks of 32 by definition, not of 64"):
        FORM.quantise(torch.ones(2, 64), 64)
