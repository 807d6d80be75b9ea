"""The patience of early stopping, counted on evaluation losses."""

import pytest

from harness.findings import Finding
from harness.observations import Observations
from harness.probes.matrix.early_stopping_ignored import check
from harness.registry import Missing, NotApplicable


def judge(steps, losses, patience=1, *, every=2, planned=12, stops_early=False):
    """Judge a run of so many steps that was evaluated every few of them."""
    seen = Observations(
        ending="trained",
        losses=(1.0,) * steps,
        evaluations=tuple((every * (i + 1), loss) for i, loss in enumerate(losses)),
    )
    config = {"early_stopping": patience, "eval_steps": every, "max_steps": planned}
    return check(seen, {"stops_early": stops_early, "config": config})


@pytest.mark.parametrize(
    ("steps", "losses", "patience"),
    [
        (4, [1.0, 1.1], 1),
        (4, [1.0, 1.0], 1),
        (8, [1.0, 0.95, 0.9, 0.95], 1),
        (10, [1.0, 1.1, 0.9, 0.95, 0.95], 2),
        (12, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 1),
        (12, [6.0, 5.0, 4.0, 3.0, 2.0, 3.0], 1),
        (12, [1.0, 1.1, 0.9, 1.0, 0.8, 0.9], 2),
    ],
)
def test_a_run_that_ends_where_its_patience_does_is_healthy(steps, losses, patience):
    assert isinstance(judge(steps, losses, patience), str)


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("off", [-1, 1, 2])
def test_a_run_that_waits_for_more_or_fewer_evaluations_is_found(patience, off):
    steps = 2 * (1 + patience + off)
    losses = [1.0 + i for i in range(1 + patience + off)]
    result = judge(steps, losses, patience, planned=40)

    assert isinstance(result, Finding)
    assert result.evidence[0].expected == (2 * (1 + patience) if off > 0 else 40)


def test_a_run_that_ends_before_its_last_step_without_reason_is_found():
    assert isinstance(judge(6, [3.0, 2.0, 1.0]), Finding)


def test_an_evaluation_that_did_not_come_is_found():
    assert "evaluation" in judge(12, []).message
    assert judge(12, [3.0, 2.0]).evidence[0].expected == 6
    assert isinstance(judge(12, [], every=None), Finding)


def test_a_scenario_that_must_stop_early_wants_fewer_steps():
    falling = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert isinstance(judge(12, falling, stops_early=True), Finding)
    assert isinstance(judge(4, [1.0, 2.0], stops_early=True), str)


def test_other_runs_are_not_judged():
    config = {"early_stopping": None}
    with pytest.raises(NotApplicable):
        check(Observations(ending="trained"), {"config": config})
    with pytest.raises(Missing):
        judge(0, [])
