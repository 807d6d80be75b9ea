"""The scenario files of the project: complete, pinned, with data that each method learns from."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.matrix import Cell, load_cells
from mudpuppy.data.read import read_dataset
from mudpuppy.features import FEATURES, METHODS, PRECISIONS
from mudpuppy.rules import RULES, every_single_feature
from scenarios.loader import SHIPPED

MANY_RULES = {"r06-grpo": {"MP-R06", "MP-R41"}}
"""Rows of `rejections.yaml` to which more than one rule applies, because no other row could be."""


@pytest.fixture(scope="module")
def full() -> tuple[Cell, ...]:
    return load_cells("full")


@pytest.fixture(scope="module")
def rejections() -> tuple[Cell, ...]:
    return load_cells("rejections")


def test_the_full_matrix_is_the_whole_table(full: tuple[Cell, ...]) -> None:
    decisions = {
        (d.method, d.precision, frozenset(d.features)): d.accepted for d in every_single_feature()
    }
    cells = {
        (c.config["method"], c.config["precision"], c.features): c.expect.outcome == "trained"
        for c in full
    }

    assert decisions == cells
    assert len(METHODS) * len(PRECISIONS) * (1 + len(FEATURES)) == len(full)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_data_that_it_can_learn_from(full: tuple[Cell, ...], method: str) -> None:
    datasets = {cell.config["dataset"] for cell in full if cell.config["method"] == method}

    (dataset,) = datasets
    assert Path(dataset).is_relative_to(SHIPPED)
    assert len(read_dataset(Path(dataset), method).samples) >= 16


def test_every_rule_is_pinned_by_a_row_about_it_alone(rejections: tuple[Cell, ...]) -> None:
    assert {rule.code for rule in RULES} == {cell.expect.code for cell in rejections}
    for cell in rejections:
        found = {rule.code for rule in cell.decision.rejections}
        assert MANY_RULES.get(cell.name, {cell.expect.code}) == found, cell.name


def test_every_method_of_a_rule_is_pinned_where_no_other_rule_is_in_the_way(
    rejections: tuple[Cell, ...],
) -> None:
    pinned = {(cell.expect.code, cell.config["method"]) for cell in rejections}
    alone = {
        (decision.rejections[0].code, decision.method)
        for decision in every_single_feature()
        if len(decision.rejections) == 1
    }

    assert set() == alone - pinned


def test_every_pair_is_pinned_by_hand_and_not_by_the_table(rejections: tuple[Cell, ...]) -> None:
    text = (SHIPPED / "rejections.yaml").read_text(encoding="utf-8")

    assert text.count("- {name:") + text.count("- name:") == text.count("outcome: rejected")


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.name)
def test_every_file_says_where_its_schema_is(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]

    assert "# yaml-language-server: $schema=../docs/scenario.schema.json" == first
