"""The search for the largest size: right answers, few runs, and no trust in a fickle machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.facts.trials import Attempt
from harness.trials.search import Found, find_largest


def search(limit: int, *, start: int = 1, ceiling: int = 4096, max_probes: int = 40) -> Found:
    def attempt(value: int) -> Attempt:
        assert 1 <= value <= ceiling
        return Attempt(value=value, fits=value <= limit, how="fits" if value <= limit else "no")

    return find_largest(
        attempt, start=start, ceiling=ceiling, resolution=0.1, max_probes=max_probes
    )


@given(limit=st.integers(0, 5000), start=st.integers(1, 4096))
def test_the_answer_is_within_its_resolution(limit, start):
    found = search(limit, start=start)

    assert found.monotone
    assert found.largest <= limit
    if limit >= 4096:
        assert 4096 == found.largest
        assert found.smallest_refused is None
    else:
        assert found.smallest_refused is not None
        assert found.smallest_refused > limit
        assert found.smallest_refused - found.largest <= max(1, 0.1 * found.largest)


@given(limit=st.integers(0, 5000), max_probes=st.integers(4, 12))
def test_the_number_of_runs_is_kept(limit, max_probes):
    found = search(limit, max_probes=max_probes)

    assert len(found.attempts) <= max_probes
    assert found.largest <= limit


def test_both_sides_of_the_answer_are_looked_at_again():
    found = search(100)
    again = [one.value for one in found.attempts[-3:]]

    assert found.largest in again
    assert any(value > found.smallest_refused for value in again)
    assert any(value < found.largest for value in again)


def test_a_machine_that_changes_its_mind_is_told():
    asked: list[int] = []

    def attempt(value: int) -> Attempt:
        asked.append(value)
        fits = value <= 64 and len(asked) < 9  # then the machine is full
        return Attempt(value=value, fits=fits, how="")

    found = find_largest(attempt, start=1, ceiling=999, resolution=0.1, max_probes=40)

    assert not found.monotone


def test_no_search_is_no_answer():
    with pytest.raises(ValueError, match="no search"):
        search(5, start=9, ceiling=8)
