"""NF4: the paper's levels, the nearest of them, scales of 16 bits, and what a search gains."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.formats.nf4 import make_levels
from mudpuppy.quant.formats.selftest import relative_error

FORM = FORMATS["nf4"]
PAPER = (-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0)
PAPER += (0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)
"""Appendix E of QLoRA (arXiv 2305.14314), to eight digits: facts to be met, not code."""


def bitsandbytes_round(weight: torch.Tensor, block: int = 64) -> torch.Tensor:
    """The values of bitsandbytes' NF4: fp32 absmax, nearest of the paper's levels."""
    levels = np.array(PAPER, np.float32)
    blocks = weight.numpy().reshape(-1, block)
    peak = np.abs(blocks).max(1, keepdims=True)
    near = np.abs((blocks / peak)[:, :, None] - levels).argmin(2)
    return torch.from_numpy((levels[near] * peak).reshape(weight.shape))


def test_the_levels_are_those_of_the_paper():
    assert make_levels() == pytest.approx(PAPER, abs=2e-7)
    assert FORM.levels == tuple(torch.tensor(PAPER).bfloat16().tolist())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=64),
    st.sampled_from([1e-40, 1e-6, 1.0, 1e30]),
)
def test_every_weight_gets_the_nearest_level(numbers, scale):
    weight = torch.tensor([[1.0, *numbers]]) * scale
    packed = FORM.quantise(weight, 65)
    held = packed.scales.float()
    value = FORM.dequantise(packed)
    levels = torch.tensor(FORM.levels) * held
    nearest = (weight[0, :, None].double() - levels[0].double()).abs().amin(1)
    away = (weight - value)[0].double().abs()
    # a quotient is rounded: two levels that are equally near to a bit may be exchanged
    assert bool((away <= nearest * (1 + 1e-5) + float(held) * 1e-6 + 1e-44).all())


@given(st.integers(0, 0x7F7F0000))
def test_a_scale_is_the_largest_number_of_bfloat16_that_is_not_above_absmax(bits):
    peak = torch.tensor([bits], dtype=torch.int32).view(torch.float32)  # also subnormal ones
    scale = FORM.round_scale(peak).view(torch.int16).to(torch.int32) << 16
    assert int(scale) <= bits < int(scale) + (1 << 16)


def test_of_two_equally_near_levels_the_lower_is_taken():
    low, high = FORM.levels[9], FORM.levels[10]
    weight = torch.tensor([[1.0, (low + high) / 2, -1.0]])
    assert FORM.dequantise(FORM.quantise(weight)).tolist() == [[1.0, low, -1.0]]


def test_products_are_exact_in_float32():
    levels = torch.tensor(FORM.levels, dtype=torch.float64)
    scales = torch.randn(500).bfloat16().double().abs()
    exact = levels[:, None] * scales
    assert torch.equal(exact.float().double(), exact)


def test_scales_span_the_range_of_float32():
    largest = torch.finfo(torch.float32).max
    weight = torch.tensor([[largest, -largest, 0.0], [1e-38, 1e-39, 0.0], [1e-45, 0.0, 0.0]])
    value = FORM.dequantise(FORM.quantise(weight))
    assert bool(torch.isfinite(value).all())
    assert value[0].tolist() == pytest.approx([largest, -largest, 0.0], rel=0.004)
    assert value[1, 0] == pytest.approx(1e-38, rel=0.01)
    assert not value[2].any()  # below the smallest scale of bfloat16: 9.2e-41


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(512, 1024, generator=generator)
    outliers = gaussian.clone()
    outliers[:, ::1000] *= 8
    chi = torch.randn(512, 1024, 5, generator=generator).square().sum(2)
    return {"gaussian": gaussian, "outliers": outliers, "student": gaussian / (chi / 5).sqrt()}


@pytest.mark.parametrize("kind", ["gaussian", "outliers", "student"])
def test_the_error_is_no_worse_than_with_scales_of_32_bits(weights, kind):
    """bitsandbytes' NF4 of block 64 holds 4.5 bits a weight, this 4.25."""
    weight = weights[kind]
    theirs = relative_error(bitsandbytes_round(weight), weight)
    plain = relative_error(FORM.dequantise(FORM.quantise(weight)), weight)
    searched = relative_error(FORM.dequantise(FORM.quantise(weight, 64, 16)), weight)
    assert plain <= theirs
    assert searched <= 0.96 * theirs
    if kind == "gaussian":
        assert theirs == pytest.approx(0.0920, abs=2e-4)
        assert searched <= 0.94 * theirs


def test_the_real_bitsandbytes_rounds_as_its_rewrite_here_does(weights):
    functional = pytest.importorskip("bitsandbytes").functional
    weight = weights["student"]
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    real = functional.dequantize_4bit(packed, state)
    same = torch.isclose(real, bitsandbytes_round(weight), rtol=1e-6, atol=0.0)
    assert float(same.float().mean()) > 0.9999
    assert relative_error(bitsandbytes_round(weight), weight) == pytest.approx(
        relative_error(real, weight), rel=1e-4
    )


@pytest.mark.parametrize("steps", [1, 4, 16])
@pytest.mark.parametrize("name", ["nf4", "int4"])
def test_a_search_makes_no_block_worse(name, steps):
    form = FORMATS[name]
    weight = torch.randn(64, 300, generator=torch.Generator().manual_seed(1))
    weight[3] *= 1e30
    weight[4] *= 1e-38

    def errors(search):
        gap = form.dequantise(form.quantise(weight, 64, search)).double() - weight.double()
        return torch.nn.functional.pad(gap.square(), (0, 20)).view(64, -1, 64).sum(2)

    plain, searched = errors(0), errors(steps)
    assert bool((searched <= plain * (1 + 1e-5)).all())
    assert bool((searched < plain).any())
