"""A call is given up when its time is over, and is otherwise as if it were made here."""

from __future__ import annotations

import threading
import time

import pytest

from mudpuppy.deadline import Overdue, call_within


def test_what_is_returned_and_raised_comes_through():
    assert call_within(5, lambda: None) is None
    assert call_within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        call_within(5, lambda: 1 // 0)


def test_what_takes_too_long_is_given_up():
    never = threading.Event()
    begun = time.monotonic()
    with pytest.raises(Overdue):
        call_within(0.05, never.wait)
    never.set()
    assert time.monotonic() - begun < 10


def test_a_time_that_is_over_already_is_no_error_of_ours():
    never = threading.Event()
    with pytest.raises(Overdue):
        call_within(-3, never.wait)
    never.set()
