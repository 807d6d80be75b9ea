"""Rejected cells are forced by taking out their own rules, and only those, in their own process."""

from __future__ import annotations

import pytest

from harness.audit import WITHOUT_RULES, audit_rejections, force_cells, take_out_rules
from harness.matrix import Cell, load_cells
from harness.results import CellResult, Outcome
from mudpuppy import rules
from mudpuppy.config_check import load_config
from mudpuppy.errors import UnsupportedCombination

REJECTIONS = load_cells("rejections")


def result_of(cell: Cell, outcome: Outcome) -> CellResult:
    return CellResult(**cell.identity(), outcome=outcome, status=outcome.status, message="so")


def test_rejected_cells_are_to_be_trained_without_every_rule_that_rejects_them() -> None:
    forced = {cell.name: cell for cell in force_cells(REJECTIONS)}

    assert [cell.name for cell in REJECTIONS] == [*forced]
    assert {"trained"} == {cell.expect.outcome for cell in forced.values()}
    assert ["MP-R06", "MP-R41"] == forced["r06-grpo"].options[WITHOUT_RULES]
    ids = {cell.cell_id for cell in forced.values()}
    assert len(REJECTIONS) == len(ids)
    assert not ids & {cell.cell_id for cell in REJECTIONS}


def test_cells_that_are_accepted_are_not_forced() -> None:
    assert [7] == [cell.number for cell in force_cells(load_cells("seed"))]


@pytest.mark.parametrize("cell", force_cells(REJECTIONS)[::9], ids=lambda cell: cell.name)
def test_without_its_rules_a_combination_is_accepted(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "RULES", rules.RULES)
    settings = {**cell.config, "output": "out"}
    with pytest.raises(UnsupportedCombination):
        load_config(settings)

    take_out_rules(cell.options)

    assert cell.config["method"] == load_config(settings).method


def test_other_rules_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "RULES", rules.RULES)
    before = rules.RULES

    take_out_rules({WITHOUT_RULES: ["MP-R07"]})
    assert ["MP-R07"] == [rule.code for rule in before if rule not in rules.RULES]

    take_out_rules({})
    assert len(before) - 1 == len(rules.RULES)


def test_only_what_trained_and_is_healthy_would_have_worked() -> None:
    forced = force_cells(REJECTIONS)[:4]
    outcomes = (Outcome.PASSED, Outcome.FAILED, Outcome.CRASHED, Outcome.NOT_RUN)
    results = [result_of(c, one) for c, one in zip(forced, outcomes, strict=True)]

    audit = audit_rejections(forced, results)

    assert [True, False, False, False] == [one["works"] for one in audit]
    assert [["MP-R01"], ["MP-R02"], ["MP-R03"], ["MP-R04"]] == [one["codes"] for one in audit]
