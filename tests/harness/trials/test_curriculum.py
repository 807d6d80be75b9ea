"""The curriculum's cells: what is planted is named in the first topic."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness import worker
from harness.judge import judge_cell
from harness.matrix import load_cells
from harness.observations import Observations, read_observations
from harness.results import Outcome, WorkerExit
from harness.trials.curriculum import check_options, perform, write_curriculum
from harness.trials.order import Order
from mudpuppy.errors import ConfigError
from mudpuppy.pipelines.curriculum.plan import read_curriculum

CELLS = {cell.name: cell for cell in load_cells("curriculum")}
FINE = WorkerExit(exit_code=0, wall_s=1.0, peak_rss_bytes=1)


def order_for(name: str, folder: Path) -> Order:
    cell = CELLS[name]
    return Order(
        folder=folder,
        config=cell.config,
        options=cell.options,
        expect={},
        train=worker._train,
        import_engine=worker.import_engine,
    )


def run(name: str, folder: Path) -> Observations:
    """Run a cell in a fork: what is planted must not stay in this process."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            perform(order_for(name, folder)).write(folder)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert 0 == os.waitstatus_to_exitcode(status)
    seen = read_observations(folder)
    assert seen
    return seen


@pytest.mark.pressure  # minutes: make curriculum-cells
@pytest.mark.parametrize("name", sorted(CELLS))
def test_every_cell_ends_as_its_scenario_says(name: str, tmp_path: Path):
    run(name, tmp_path)

    result = judge_cell(CELLS[name], tmp_path, FINE)
    assert Outcome.PASSED is result.outcome, result.message


def test_a_stub_is_named_in_the_first_topic(tmp_path: Path):
    seen = run("stub", tmp_path)

    stages = [one for one in seen.trial["stages"] if not one["kept"]]
    assert (1, "sft", "stub-adapter") == (
        stages[0]["number"],
        stages[0]["kind"],
        stages[0]["roots"][0],
    )
    assert Outcome.PASSED is judge_cell(CELLS["stub"], tmp_path, FINE).outcome


def test_a_cell_takes_the_first_topics_of_the_demo(tmp_path: Path):
    order = order_for("healthy", tmp_path)
    made = read_curriculum(write_curriculum(order, check_options(order.options)))

    assert ["Land / Capitals / south", "Land / Capitals / north"] == [
        topic.name for topic in made.topics
    ]
    assert made.profile


@pytest.mark.parametrize("wrong", [{"topics": 0}, {"planted": "bug"}, {"more": 1}])
def test_wrong_options_are_named(wrong: dict[str, object]):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        check_options(wrong)
