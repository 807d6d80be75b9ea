"""Messages of errors stay readable, however much is wrong."""

from __future__ import annotations

from mudpuppy.errors import MOST_PROBLEMS, ConfigError


def test_the_first_problems_are_told_and_the_others_counted():
    error = ConfigError([f"number {n} is wrong" for n in range(5000)], hint="mend it")
    lines = str(error).splitlines()
    assert lines[0] == "5,000 problems"
    assert lines[1:3] == ["  - number 0 is wrong", "  - number 1 is wrong"]
    assert lines[-2:] == [f"  and {5000 - MOST_PROBLEMS:,} more", "  hint: mend it"]
    assert len(lines) == MOST_PROBLEMS + 3
    assert len(error.problems) == 5000


def test_as_many_problems_as_fit_are_all_told():
    text = str(ConfigError([f"number {n} is wrong" for n in range(MOST_PROBLEMS)]))
    assert f"number {MOST_PROBLEMS - 1} is wrong" in text
    assert "more" not in text
