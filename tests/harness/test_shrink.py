"""Shrinking: what is left fails in the same way, and none of it can be left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.environment import describe_environment
from harness.history import History
from harness.matrix import Cell, expand, load_cells
from harness.neighbours import Combination, combination_of, find_neighbours
from harness.pools.spawn import SpawnPool
from harness.recorder import Recorder, identify_code
from harness.results import CellResult, MatrixResult, Outcome, SmallestFailure
from harness.runner import run_matrix
from harness.selection import find_cell
from harness.shrink import Budget, BudgetSpentError, Failure, Shrinker, failure_of
from harness.shrink_run import ShrinkOptions, shrink_cell, shrink_failures
from mudpuppy.errors import UsageError
from scenarios.loader import load_scenarios
from tests.harness import fake_worker

FULL = load_scenarios("full")
CELLS = {cell.name: cell for cell in expand(FULL)}
DEAD = Failure("failed", "MPD203")
FEATURES = (
    *("gradient-checkpointing", "lr-scheduler", "merge-lora", "dora", "rslora", "packing"),
    *("checkpoints", "all-tokens", "no-chat-template", "logging"),
)
"""Features that the rule table accepts together, with LoRA and QLoRA, at every precision."""


def result_of(cell: Cell, failure: Failure | None) -> CellResult:
    outcome = Outcome(failure.outcome) if failure else Outcome.PASSED
    findings = ({**fake_worker.FINDING, "code": failure.mark},) if failure else ()
    return CellResult(
        **cell.identity(), outcome=outcome, status=outcome.status, message="", findings=findings
    )


def neighbour(wanted: Combination) -> Cell | None:
    return find_neighbours(FULL, CELLS["lora-fp32"])(wanted)


Fault = Callable[[Combination], Failure | None]


def shrinker(fault: Fault, *, cells: int = 1000, known: set[str] | None = None) -> Shrinker:
    """Return a shrinker whose cells fail as a fault says."""

    def look_up(cell: Cell) -> CellResult | None:
        is_known = known is not None and cell.cell_id in known
        return result_of(cell, fault(combination_of(cell))) if is_known else None

    return Shrinker(
        known=look_up,
        run=lambda cell: result_of(cell, fault(combination_of(cell))),
        budget=Budget(cells),
    )


def needs(*factors: str) -> Fault:
    """Return a fault that needs all of some factors."""
    return lambda at: DEAD if set(factors) <= set(at.factors) else None


def shrink(fault: Fault, *features: str, method: str = "lora", precision: str = "fp32",
           **options: Any) -> SmallestFailure:  # fmt: skip
    cell = neighbour(Combination(method, precision, frozenset(features)))
    assert cell is not None
    assert cell.expect.outcome == "trained"
    return shrinker(fault, **options).shrink(cell, DEAD, neighbour)


@pytest.mark.parametrize(
    ("fault", "left"),
    [
        (needs("dora"), "lora + fp32 + dora"),
        (needs("dora", "packing"), "lora + fp32 + dora + packing"),
        (needs("method=qlora"), "qlora + fp32"),
        (needs("precision=bf16"), "lora + bf16"),
        (needs("method=qlora", "packing"), "qlora + fp32 + packing"),
        (needs("method=qlora", "precision=bf16", "rslora"), "qlora + bf16 + rslora"),
        (needs(), "lora + fp32"),
    ],
)
def test_what_is_left_is_what_the_fault_needs(fault: Fault, left: str) -> None:
    found = shrink(fault, *FEATURES, method="qlora", precision="bf16")

    assert (found.combination, found.is_smallest) == (left, True)
    assert (found.outcome, found.mark) == (DEAD.outcome, DEAD.mark)
    assert found.ran <= 30


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.frozensets(st.sampled_from(FEATURES), min_size=1, max_size=4), min_size=1),
    st.sets(st.sampled_from(["method=qlora", "precision=bf16"])),
)
def test_no_part_of_what_is_left_fails_by_itself(causes: list[frozenset[str]], also: Any) -> None:
    def fault(at: Combination) -> Failure | None:
        return DEAD if any(set(at.factors) >= cause | also for cause in causes) else None

    found = shrink(fault, *FEATURES, method="qlora", precision="bf16")

    assert found.is_smallest
    assert fault(Combination.of_factors(found.factors)) == DEAD
    for rest in combinations(found.factors, max(0, len(found.factors) - 1)):
        assert fault(Combination.of_factors(rest)) is None


def test_another_failure_is_not_the_same() -> None:
    def fault(at: Combination) -> Failure | None:
        if {"dora", "packing"} <= at.features:
            return DEAD
        return Failure("crashed", "SIGSEGV") if "dora" in at.features else None

    assert shrink(fault, *FEATURES).combination == "lora + fp32 + dora + packing"


def test_known_results_cost_nothing() -> None:
    singles = {cell.cell_id for cell in CELLS.values()}

    found = shrink(needs("dora"), *FEATURES, method="qlora", precision="bf16", known=singles)

    assert found.combination == "lora + fp32 + dora"
    assert (found.ran, found.is_smallest) == (0, True)
    assert found.looked_up > 0


def test_what_passed_alone_is_set_back_first() -> None:
    singles = {CELLS[f"lora-fp32-{name}"].cell_id for name in FEATURES}

    blind = shrink(needs("dora", "logging"), *FEATURES)
    told = shrink(needs("dora", "logging"), *FEATURES, known=singles)

    assert told.combination == blind.combination
    assert told.ran <= blind.ran


def test_a_spent_budget_says_so_and_keeps_what_was_reached() -> None:
    found = shrink(needs("dora", "packing"), *FEATURES, method="qlora", cells=8)

    assert not found.is_smallest
    assert found.ran == 8
    assert {"dora", "packing"} <= set(found.factors)
    assert len(found.factors) < 1 + len(FEATURES)


def test_time_is_a_budget_too() -> None:
    budget = Budget(100, seconds=0.0)

    with pytest.raises(BudgetSpentError):
        budget.spend()


def test_what_the_rules_refuse_is_not_run() -> None:
    """Without merge-lora, merge-precision is refused: both go together or stay together."""
    asked: list[Combination] = []

    def fault(at: Combination) -> Failure | None:
        asked.append(at)
        return needs("merge-precision")(at)

    found = shrink(fault, "merge-lora", "merge-precision", "dora")

    assert found.factors == ("merge-lora", "merge-precision")
    assert all(neighbour(at).expect.outcome == "trained" for at in asked)  # type: ignore[union-attr]


def test_a_neighbour_is_the_very_cell_of_the_file() -> None:
    for name in ("kto-bf16-packing", "grpo-fp32", "lora-fp16-dora", "multimodal-fp32"):
        if name in CELLS:
            cell = CELLS[name]
            assert find_neighbours(FULL, cell)(combination_of(cell)) == _renumbered(cell)


def _renumbered(cell: Cell) -> Cell:
    from dataclasses import replace

    return replace(cell, number=1)


def test_another_method_brings_its_own_data() -> None:
    cell = find_neighbours(FULL, CELLS["kto-fp32"])(Combination("lora", "fp32"))

    assert cell is not None
    assert str(cell.config["dataset"]).endswith("new_facts.jsonl")
    assert cell.cell_id == CELLS["lora-fp32"].cell_id


def test_a_cell_of_a_person_keeps_its_settings_without_the_feature() -> None:
    seed = load_scenarios("seed")
    cell = find_cell(load_cells("seed"), "lora-early-stopping")
    others = cell.features - {"early-stopping"}

    found = find_neighbours(seed, cell)(Combination("lora", "fp32", others))

    assert found is not None
    assert found.features == others
    assert found.config["early_stopping"] is None
    assert found.config["learning_rate"] == cell.config["learning_rate"]
    assert find_neighbours(seed, cell)(Combination("kto", "fp32")) is None


SMALL = """\
schema_version: 1
name: small
defaults: {model: none, dataset: data.jsonl}
axes: {method: [lora, qlora], precision: [fp32, bf16], feature: [none, dora, packing+dora,
       packing+dora+logging]}
"""


def judge(cell: Cell, folder: Path, worker_exit: Any) -> CellResult:
    """Find DoRA with packing dead, and nothing else."""
    assert json.loads((folder / "observations.json").read_text("utf-8"))
    fault = needs("dora", "packing")(combination_of(cell))
    return result_of(cell, fault)


def run_small(folder: Path, history: History, budget: int) -> tuple[MatrixResult, Any]:
    (folder / "small.yaml").write_text(SMALL, encoding="utf-8")
    loaded = load_scenarios(folder / "small.yaml")
    cells = expand(loaded)
    pool = SpawnPool(fake_worker.COMMAND)
    matrix = run_matrix(
        cells, folder / "run", judge=judge, pool=pool, name="small", recorder=Recorder(history)
    )
    options = ShrinkOptions(judge=judge, pool=pool, history=history)
    smallest = shrink_failures(loaded, cells, matrix.cells, folder / "run", Budget(budget), options)
    return matrix, smallest


def test_failures_of_a_run_are_shrunk_once_and_explain_the_others(tmp_path: Path) -> None:
    with History(tmp_path / "history.sqlite", create=True) as history:
        matrix, smallest = run_small(tmp_path, history, budget=30)
        (search, run) = history.runs()

        failing = [cell.name for cell in matrix.cells if failure_of(cell)]
        assert len(failing) == 8
        assert [one.combination for one in smallest] == ["lora + fp32 + dora + packing"]
        assert sorted(smallest[0].cells) == sorted(failing)
        assert smallest[0].ran == 1  # packing alone; everything else stands in the run
        assert (search.kind, search.name, search.counts["passed"]) == ("shrink", "small-shrink", 1)
        assert [one.run_id for one in history.honest_runs()] == [run.run_id]


def test_the_extra_cells_are_known_the_next_time(tmp_path: Path) -> None:
    with History(tmp_path / "history.sqlite", create=True) as history:
        run_small(tmp_path, history, budget=30)
        _, again = run_small(tmp_path, history, budget=0)

        assert (again[0].combination, again[0].is_smallest) == (
            "lora + fp32 + dora + packing",
            True,
        )
        assert again[0].ran == 0
        assert history.count_runs() == 2


def test_one_cell_is_run_first_when_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    loaded = load_scenarios(tmp_path / "small.yaml")
    cells = {cell.name: cell for cell in expand(loaded)}
    with History(tmp_path / "history.sqlite", create=True) as history:
        pool = SpawnPool(fake_worker.COMMAND)
        options = ShrinkOptions(judge=judge, pool=pool, history=history)

        def ask(name: str, budget: int = 30) -> SmallestFailure | None:
            return shrink_cell(loaded, cells[name], tmp_path / "run", Budget(budget), options)

        assert ask("lora-bf16-dora") is None
        with pytest.raises(BudgetSpentError):
            ask("qlora-bf16-packing-dora-logging", 0)
        found = ask("qlora-bf16-packing-dora-logging")

        assert found is not None
        assert found.combination == "lora + fp32 + dora + packing"
        code = identify_code(describe_environment())
        assert history.known_result(found.cell_id, code, None) is not None
        assert history.known_result(found.cell_id, "another", None) is None
        assert history.known_result(found.cell_id, code, "merge-does-nothing") is None


def test_other_trials_are_refused(tmp_path: Path) -> None:
    (cell, *_) = load_cells("soak")
    with History(tmp_path / "history.sqlite", create=True) as history:
        options = ShrinkOptions(judge=judge, pool=SpawnPool(fake_worker.COMMAND), history=history)
        with pytest.raises(UsageError, match="is a soak trial, and only training can be shrunk"):
            shrink_cell(load_scenarios("soak"), cell, tmp_path, Budget(), options)
