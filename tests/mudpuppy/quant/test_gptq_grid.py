"""The grid of a group spans its weights, or less where that leaves the smaller squared error."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mudpuppy.errors import EngineError
from mudpuppy.quant.gptq_grid import (
    SHRINKS,
    SMALLEST_SCALE,
    GptqConfig,
    make_grid,
    why_too_small,
)


def make_weights(seed: int = 0, inputs: int = 32, outputs: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(inputs, outputs, generator=generator, dtype=torch.float64)


def squared_error(weight: torch.Tensor, config: GptqConfig) -> torch.Tensor:
    grid = make_grid(weight, config)
    return (grid.value(grid.round(weight, config.max_level)) - weight).square().sum(0)


def errors_by_hand(column: list[float], bits: int, symmetric: bool) -> list[float]:
    """Squared errors of one output for every span that the search may choose."""
    top = 2**bits - 1
    found = []
    for share in (1.0, *SHRINKS):
        low, high = min(0.0, *column) * share, max(0.0, *column) * share
        if symmetric:
            high = max(high, -low)
            low = -high
        else:
            low = min(low, -high / (top - 1))
        scale = float(torch.tensor((high - low) / top).half())
        zero = (top + 1) // 2 if symmetric else min(max(round(-low / scale), 1), top)
        total = 0.0
        for value in column:
            level = min(max(round(value / scale + zero), 0), top)
            total += ((level - zero) * scale - value) ** 2
        found.append(total)
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([2, 3, 4, 8]), st.booleans())
def test_the_search_finds_the_least_error_of_the_spans_it_tries(seed, bits, symmetric):
    weight = make_weights(seed, inputs=16, outputs=3)
    config = GptqConfig(bits=bits, symmetric=symmetric, clip="mse")
    found = squared_error(weight, config).tolist()
    for place, column in enumerate(weight.T.tolist()):
        assert found[place] == pytest.approx(min(errors_by_hand(column, bits, symmetric)), rel=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_clipping_an_outlier_pays_and_is_never_worse(bits, symmetric):
    weight = make_weights(inputs=128)
    weight[5, :4] *= 3
    whole = squared_error(weight, GptqConfig(bits=bits, symmetric=symmetric))
    clipped = squared_error(weight, GptqConfig(bits=bits, symmetric=symmetric, clip="mse"))
    assert bool((clipped <= whole).all())
    assert float(clipped[:4].sum()) < 0.95 * float(whole[:4].sum())


def test_the_whole_span_is_kept_where_it_is_exact():
    weight = torch.tensor([[-8.0], [7.0], [3.0], [0.0]])
    spans = [make_grid(weight, GptqConfig(symmetric=False, clip=clip)) for clip in ("none", "mse")]
    assert all(torch.equal(a, b) for a, b in zip(*spans, strict=True))
    assert float(squared_error(weight, GptqConfig(symmetric=False)).sum()) == 0.0


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_a_matrix_is_too_small_or_nothing_in_it_is_off_by_more_than_a_step(bits, symmetric, spread):
    config = GptqConfig(bits=bits, symmetric=symmetric)
    weight = make_weights()
    weight[:, 1:] *= spread  # the other outputs need far smaller scales
    span = 2 * weight.abs().max() if symmetric else weight.max() - weight.min()
    step = SMALLEST_SCALE * config.max_level * 1.01
    weight *= step * config.max_level / float(span)
    grid = make_grid(weight, config)
    off = (grid.value(grid.round(weight, config.max_level)) - weight).abs().max()
    # half a step by rounding, half by the scale, and half where the zero is rounded as well
    assert float(off) <= step * (1.01 if symmetric else 1.51)
    assert why_too_small(weight, config) == ""
    assert "too small for float16 scales" in why_too_small(weight / 1.02, config)
    assert why_too_small(weight * 0, config) == ""


@pytest.mark.parametrize("clip", ["none", "mse"])
def test_zero_weights_and_too_large_ones(clip):
    config = GptqConfig(clip=clip)
    grid = make_grid(torch.zeros(4, 2), config)
    assert not grid.value(grid.round(torch.zeros(4, 2), config.max_level)).any()
    with pytest.raises(EngineError, match="too large for a float16 scale"):
        make_grid(torch.full((4, 2), 1e7), config)
