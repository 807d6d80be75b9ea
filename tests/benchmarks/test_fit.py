"""The exponent of a cost: found where it is known, and refused where there is none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fit import fit_power

SIZES = (4.0, 8.0, 16.0, 32.0)


@given(
    exponent=st.floats(-2, 3),
    factor=st.floats(1e-6, 1e6),
    sizes=st.lists(st.floats(0.5, 1e6), min_size=2, max_size=9, unique=True),
)
def test_a_power_law_is_found_again(exponent: float, factor: float, sizes: list[float]):
    if max(sizes) / min(sizes) < 1.5:
        return
    fitted = fit_power(sizes, [factor * size**exponent for size in sizes])

    assert math.isclose(fitted.exponent, exponent, abs_tol=1e-6)
    assert math.isclose(fitted.factor, factor, rel_tol=1e-4)
    assert fitted.off < 1e-6


@pytest.mark.parametrize("fixed", [0.0, 1.0, 100.0])
def test_a_fixed_cost_beside_a_linear_one_never_looks_steeper(fixed: float):
    fitted = fit_power(SIZES, [fixed + 2 * size for size in SIZES])

    assert fitted.exponent <= 1 + 1e-9
    assert (fitted.exponent > 0.999) == (fixed == 0.0)


def test_a_square_hidden_in_a_linear_cost_is_seen():
    fitted = fit_power(SIZES, [size + 0.1 * size**2 for size in SIZES])

    assert fitted.exponent > 1.3
    assert fitted.off > 0.01


def test_how_far_the_worst_point_is_from_the_curve():
    costs = [3 * size for size in SIZES]
    costs[1] *= 1.5

    assert 0.2 < fit_power(SIZES, costs).off < 0.5


@pytest.mark.parametrize(
    ("sizes", "costs", "words"),
    [
        ((1.0, 2.0), (1.0,), "2 sizes and 1 costs"),
        ((2.0, 2.0), (1.0, 3.0), "two different sizes"),
        ((1.0, 2.0), (0.0, 3.0), "above 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(sizes, costs, words: str):
    with pytest.raises(ValueError, match=words):
        fit_power(sizes, costs)
