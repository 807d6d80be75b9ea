"""The table of cells finds what a binary search finds, at the borders too."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.formats.nearest import Nearest

NF4 = [(a + b) / 2 for a, b in pairwise(FORMATS["nf4"].levels)]


def around(borders):
    """The borders, and the numbers of float32 beside them."""
    exact = torch.tensor(borders)
    up, down = (torch.nextafter(exact, torch.tensor(end)) for end in (9.0, -9.0))
    return torch.cat([exact, up, down])


@pytest.mark.parametrize(("borders", "cells"), [(NF4, 32), ([0.25, 0.75, 1.25, 5.0], 2)])
def test_numbers_on_and_beside_a_border(borders, cells):
    values = torch.cat([around(borders), torch.linspace(-9, 9, 4001)])
    expected = torch.bucketize(values, torch.tensor(borders), out_int32=True)
    assert torch.equal(Nearest(borders, cells)(values), expected)


def test_a_border_may_belong_to_the_level_above():
    index = Nearest([0.25, 0.75], 2, above=frozenset({0.75}))(around([0.25, 0.75]))
    assert index.tolist() == [0, 2, 1, 2, 0, 1]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_any_number_finds_its_place(numbers):
    values = torch.tensor(numbers)
    expected = torch.bucketize(values, torch.tensor(NF4), out_int32=True)
    assert torch.equal(Nearest(NF4, 32)(values), expected)


def test_cells_that_are_too_wide_are_refused():
    with pytest.raises(ValueError, match="do not separate"):
        Nearest([0.25, 0.3], 4)
