"""The catalogue of planted bugs: each can be planted, and names cells and probes that exist."""

import os
import sys
import traceback
from collections import Counter
from pathlib import Path

import pytest

from harness.judge import judge_cell
from harness.matrix import load_cells
from harness.mutants import AREAS, CELLS, MUTANTS, plant_mutant
from harness.mutants.form import part, replaces
from harness.planting import choose_mutants, conclude, plan_cells, run_mutants
from harness.registry import load_probes
from harness.results import CellResult, Outcome
from harness.worker import import_engine
from mudpuppy.errors import ConfigError, UsageError
from scenarios.schema import Expectation

QUICK = ("merge-ignores-alpha", "rejected-after-torch")
"""Mutants that run for real in the quick suite; `make mutants` runs them all."""


def in_a_child(work) -> int:
    """Return the exit code of a fork that does the work, so that its patches die with it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - the child must not go on in here
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """Import the engine once: each plant is then a fork that patches in no time."""
    import_engine()


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_can_be_planted(name: str):
    assert 0 == in_a_child(MUTANTS[name].plant)


def test_names_cells_and_probes_exist():
    cells = {cell.name for cell in load_cells(CELLS)}
    known = {probe.code for probe in load_probes()} | {str(outcome) for outcome in Outcome}

    assert 172 <= len(MUTANTS)
    for mutant in MUTANTS.values():
        assert mutant.what.endswith("."), mutant.name
        assert mutant.cells
        assert set(mutant.cells) <= cells, mutant.name
        assert mutant.caught_by
        assert set(mutant.caught_by) <= known, mutant.name


def test_every_area_has_mutants_and_every_cell_is_used():
    assert set(AREAS) == set(Counter(mutant.area for mutant in MUTANTS.values()))
    used = {name for mutant in MUTANTS.values() for name in mutant.cells}
    assert {cell.name for cell in load_cells(CELLS)} == used


def test_an_unknown_name_is_refused_with_the_near_ones():
    with pytest.raises(ConfigError, match="did you mean 'eos-masked'"):
        plant_mutant("eos-maskd")
    with pytest.raises(UsageError, match="did you mean 'masking'"):
        choose_mutants(["maskin"])


def test_mutants_are_chosen_by_name_glob_and_area():
    assert ["eos-masked"] == [m.name for m in choose_mutants(["eos-masked"])]
    assert {"merge"} == {m.area for m in choose_mutants(["merge"])}
    assert {"merge-does-nothing"} < {m.name for m in choose_mutants(["merge-*"])}
    assert tuple(MUTANTS.values()) == choose_mutants([])


def test_each_mutant_has_a_control_and_a_cell_of_its_own():
    chosen = choose_mutants(["eos-masked", "prompt-trained"])

    cells = plan_cells(chosen)

    assert ["lora", "lora+eos-masked", "lora+prompt-trained"] == [cell.name for cell in cells]
    assert [None, "eos-masked", "prompt-trained"] == [cell.plant for cell in cells]
    assert 3 == len({cell.cell_id for cell in cells})
    assert [1, 2, 3] == [cell.number for cell in cells]


def result_of(name: str, outcome: Outcome, *codes: str) -> CellResult:
    return CellResult(
        cell_id=name,
        name=name,
        title=name,
        number=1,
        config={},
        expect=Expectation().model_dump(mode="json"),
        outcome=outcome,
        status=outcome.status,
        message="",
        findings=tuple({"code": code} for code in codes),
    )


@pytest.mark.parametrize(
    ("control", "planted", "codes", "ending"),
    [
        (Outcome.PASSED, Outcome.FAILED, ["MPD705"], "caught"),
        (Outcome.PASSED, Outcome.FAILED, ["MPD603"], "caught-otherwise"),
        (Outcome.PASSED, Outcome.CRASHED, [], "caught-otherwise"),
        (Outcome.PASSED, Outcome.PASSED, [], "survived"),
        (Outcome.FAILED, Outcome.FAILED, ["MPD705"], "not-checked"),
        (Outcome.PASSED, Outcome.LOST, [], "not-checked"),
        (Outcome.PASSED, Outcome.NOT_RUN, [], "not-checked"),
    ],
)
def test_what_became_of_a_mutant(control: Outcome, planted: Outcome, codes: list[str], ending: str):
    results = {
        "lora": result_of("lora", control),
        "lora+eos-masked": result_of("lora+eos-masked", planted, *codes),
    }

    assert ending == conclude(MUTANTS["eos-masked"], results).ending


def test_a_part_that_the_engine_has_no_more_is_noticed():
    with pytest.raises(AttributeError):
        replaces(part("engine"), "attach_adapters")


def test_static_methods_stay_static():
    class Owner:
        @staticmethod
        def double(x: int) -> int:
            return 2 * x

        def half(self, x: int) -> int:
            return x // 2

    replaces(Owner, "double")(lambda original, x: original(x) + 1)
    replaces(Owner, "half")(lambda original, self, x: original(self, x) + 1)

    assert (7, 7) == (Owner.double(3), Owner.double(3))
    assert 3 == Owner().half(4)


@pytest.mark.timeout(300)
def test_a_few_mutants_are_caught_for_real(tmp_path: Path):
    chosen = choose_mutants(QUICK)

    results = run_mutants(
        chosen, tmp_path, judge=judge_cell, cells=plan_cells(chosen), jobs=2, rerun="all"
    )

    assert ["caught"] * len(QUICK) == [one.ending for one in results], results
