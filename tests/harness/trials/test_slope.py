"""The slope and its interval: against printed tables, and against simulation."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.trials.slope import fit_slope, student_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.7062), (2, 4.30265), (5, 2.57058), (10, 2.22814), (30, 2.04227), (100, 1.98397)],
)
def test_the_quantile_is_that_of_the_printed_table(degrees, expected):
    assert expected == pytest.approx(student_quantile(0.975, degrees), rel=1e-5)


@pytest.mark.parametrize(("probability", "degrees"), [(0.5, 3), (1.0, 3), (0.9, 0)])
def test_what_has_no_quantile_is_refused(probability, degrees):
    with pytest.raises(ValueError, match="no quantile"):
        student_quantile(probability, degrees)


def test_three_measurements_give_no_interval():
    with pytest.raises(ValueError, match="no interval"):
        fit_slope([1.0, 2.0, 3.0])


@given(
    slope=st.floats(-1e6, 1e6),
    start=st.floats(0, 1e9),
    count=st.integers(4, 40),
)
def test_an_exact_line_has_its_slope_and_no_width(slope, start, count):
    found, low, high = fit_slope([start + slope * index for index in range(count)])

    assert found == pytest.approx(slope, rel=1e-6, abs=1e-3)
    assert high - low <= 1e-4 * max(1.0, abs(slope), start * 1e-6)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    chance = random.Random(7)
    held = 0
    for _ in range(300):
        _, low, high = fit_slope([0.5 * i + chance.gauss(0, 1) for i in range(12)])
        held += low <= 0.5 <= high

    assert 0.91 <= held / 300 <= 0.985
