"""Sides take turns, their figures are kept, and what cannot run says why."""

import time
from pathlib import Path

import pytest

from benchmarks.frame import NotRun, Plan, Row, at_least, at_most, interleave, needs, timed


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(folder=tmp_path, rounds=3, say=lambda _: None)


def test_all_sides_take_turns_and_the_warm_up_does_not_count(plan: Plan):
    seen: list[str] = []

    sides = interleave(plan, {name: (lambda name=name: seen.append(name)) for name in "ab"})

    assert "abababab" == "".join(seen)
    assert {"a": 3, "b": 3} == {name: len(samples) for name, samples in sides.items()}


def test_without_a_warm_up_every_round_counts(plan: Plan):
    seen: list[int] = []
    interleave(plan, {"a": lambda: seen.append(1)}, is_warmed=False)

    assert 3 == len(seen)


def test_both_clocks_are_read_and_what_a_side_returns_comes_first():
    slept = timed(lambda: time.sleep(0.05))
    given = timed(lambda: {"cpu_s": 7.0, "kl": 0.5})

    assert slept["wall_s"] >= 0.05 > slept["cpu_s"]
    assert (7.0, 0.5) == (given["cpu_s"], given["kl"])


def test_a_side_that_cannot_run_keeps_its_reason(plan: Plan):
    reason = needs("no_such_package")
    sides = interleave(plan, {"theirs": reason, "ours": lambda: None})

    assert isinstance(sides["theirs"], NotRun)
    assert "no_such_package is not installed" in sides["theirs"].reason
    assert 3 == len(sides["ours"])
    assert needs("json") is None


def test_sizes_follow_the_kind_of_run(tmp_path: Path):
    assert 9 == Plan(folder=tmp_path).pick(full=9, quick=1)
    assert 1 == Plan(folder=tmp_path, is_quick=True).pick(full=9, quick=1)


def test_goals_have_a_direction_and_nan_reaches_none():
    assert at_most(2.2).is_reached(2.2)
    assert not at_most(2.2).is_reached(2.21)
    assert at_least(3).is_reached(3.5)
    assert not at_least(3).is_reached(2.9)
    assert not at_least(3).is_reached(float("nan"))
    assert not at_most(3).is_reached(float("nan"))
    assert ("≤ 2.2", "≥ 3") == (str(at_most(2.2)), str(at_least(3)))


@pytest.mark.parametrize(
    ("figure", "allowed"),
    [("cpu_s", 2.0), ("wall_s", 4.0), ("peak_mb", 1.1), ("h2d_bytes", 1.1), ("rmse", 1.02)],
)
def test_what_the_guard_allows_follows_from_the_figure(figure: str, allowed: float):
    row = {"name": "r", "what": "w", "ours": "a", "against": "b", "figure": figure}

    assert allowed == Row(**row, goal=at_most(1)).allowed
    assert 7 == Row(**row, goal=at_most(1), margin=7).allowed
    assert Row(**row, goal=at_most(1), margin=None).allowed is None
    assert Row(**row, goal=None).allowed is None
