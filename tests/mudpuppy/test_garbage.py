"""The garbage collector is asked to wait, and left as it was found."""

import gc
from contextlib import suppress

import pytest

from mudpuppy.garbage import YOUNG, collecting_rarely


@pytest.fixture(autouse=True)
def _restored():
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("own", "inside"),
    [((700, 10, 10), (YOUNG, 10, 10)), ((0, 10, 10), (0, 10, 10)), ((10**9, 5, 5), (10**9, 5, 5))],
)
def test_a_threshold_is_raised_and_given_back(own, inside):
    gc.set_threshold(*own)
    with collecting_rarely():
        assert gc.get_threshold() == inside
    assert gc.get_threshold() == own


def test_it_is_given_back_after_an_error_too():
    gc.set_threshold(700, 10, 10)
    with suppress(ZeroDivisionError), collecting_rarely():
        raise ZeroDivisionError
    assert gc.get_threshold() == (700, 10, 10)
