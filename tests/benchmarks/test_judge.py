"""Ratios, goals, and the guard that sees what got worse."""

import math

import pytest

from benchmarks.frame import NotRun, Row, at_least, at_most
from benchmarks.judge import guard, judge, unrun

TWO = at_most(2.0)


def make_row(goal=TWO, figure: str = "cpu_s", against: str | None = "theirs", **more) -> Row:
    return Row(name="r", what="w", ours="ours", against=against, goal=goal, figure=figure, **more)


def samples(*values: float, figure: str = "cpu_s") -> list[dict[str, float]]:
    return [{figure: value, "wall_s": 2 * value} for value in values]


def test_ours_over_theirs_under_at_most_and_the_other_way_round_under_at_least():
    sides = {"ours": samples(2, 4, 6), "theirs": samples(1, 1, 1)}

    most, least = judge(make_row(at_most(4)), sides), judge(make_row(at_least(0.25)), sides)

    assert (4.0, "reached") == (most.ratio, most.status)
    assert (0.25, "reached") == (least.ratio, least.status)
    assert (6.0, 2.0) == (most.worst, most.best)
    assert (1 / 6, 0.5) == (least.worst, least.best)


def test_rounds_are_compared_pair_by_pair():
    # a neighbour made the second round twice as long for both
    sides = {"ours": samples(1, 2, 1), "theirs": samples(2, 4, 2)}

    outcome = judge(make_row(at_least(2)), sides)

    assert (2.0, 2.0) == (outcome.worst, outcome.best)


def test_a_goal_that_is_missed_is_short_and_one_without_is_shown():
    sides = {"ours": samples(3), "theirs": samples(1)}

    assert "short" == judge(make_row(at_most(2)), sides).status
    assert "shown" == judge(make_row(None), sides).status


def test_a_figure_compared_with_nothing_is_judged_itself():
    row = make_row(at_most(0), figure="differing", against=None)

    assert "reached" == judge(row, {"ours": [{"differing": 0}]}).status
    assert "short" == judge(row, {"ours": [{"differing": 1}]}).status


def test_one_sample_is_compared_with_many():
    sides = {"ours": samples(2), "theirs": samples(1, 2, 4)}

    assert 1.0 == judge(make_row(at_most(2)), sides).ratio


def test_unequal_numbers_of_samples_and_missing_figures_are_mistakes():
    with pytest.raises(ValueError, match="2 samples and 3"):
        judge(make_row(), {"ours": samples(1, 2), "theirs": samples(1, 2, 3)})
    with pytest.raises(KeyError):
        judge(make_row(figure="kl"), {"ours": samples(1), "theirs": samples(1)})


def test_division_by_nothing_is_infinite_and_nothing_by_nothing_is_equal():
    row = make_row(at_most(1), figure="kl")

    assert math.isinf(judge(row, {"ours": [{"kl": 1}], "theirs": [{"kl": 0}]}).ratio)
    assert 1.0 == judge(row, {"ours": [{"kl": 0}], "theirs": [{"kl": 0}]}).ratio


def test_a_side_that_was_not_run_makes_the_row_so_with_its_reason():
    outcome = judge(make_row(), {"ours": samples(1), "theirs": NotRun("bnb is not installed")})

    assert ("not run", "bnb is not installed") == (outcome.status, outcome.reason)
    assert outcome.ratio is None


@pytest.mark.parametrize(
    ("goal", "calm", "verdict"),
    [
        (at_most(9), 1.9, "held"),
        (at_most(9), 2.1, "worse: 2.1, committed 1"),
        (at_least(0), 0.6, "held"),
        (at_least(0), 0.4, "worse: 0.4, committed 1"),
    ],
)
def test_the_guard_lets_pass_what_its_margin_allows_in_the_goals_direction(
    goal, calm: float, verdict: str
):
    row = make_row(goal)
    ratio = calm if not goal.is_least else 1 / calm
    now = judge(row, {"ours": samples(ratio), "theirs": samples(1)})

    assert verdict == guard(row, now, {"calm": 1.0}, same_machine=True)


def test_times_are_guarded_by_the_best_of_both_sides():
    # the first two rounds were disturbed; the ratio of the calm ones is what counts
    sides = {"ours": samples(9, 5, 1), "theirs": samples(1, 1, 1)}

    assert 1.0 == judge(make_row(), sides).calm


def test_times_of_another_kind_of_processor_guard_nothing_and_exact_figures_do():
    times, exact = make_row(), make_row(figure="rmse")
    now = judge(times, {"ours": samples(9), "theirs": samples(1)})
    off = judge(exact, {"ours": samples(1.1, figure="rmse"), "theirs": samples(1, figure="rmse")})

    assert guard(times, now, {"calm": 1.0}, same_machine=False).startswith("not guarded")
    assert guard(exact, off, {"calm": 1.0}, same_machine=False).startswith("worse")


def test_what_is_not_committed_not_run_or_not_to_be_guarded_is_said():
    row = make_row()
    now = judge(row, {"ours": samples(1), "theirs": samples(1)})

    assert "not guarded: nothing is committed" == guard(row, now, None, same_machine=True)
    assert "not guarded: no GPU here" == guard(row, unrun(row, "no GPU here"), {"calm": 1}, True)
    assert "not guarded" == guard(make_row(margin=None), now, {"calm": 1}, same_machine=True)
