"""Selection: every word must mean something."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from harness.history_rows import LastResult
from harness.matrix import load_cells
from harness.results import Outcome
from harness.selection import find_cell, select_cells
from mudpuppy.errors import UsageError

CELLS = load_cells("seed")


def names(*select: str, ignore: tuple[str, ...] = ()) -> list[str]:
    return [cell.name for cell in select_cells(CELLS, select, ignore).chosen]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("gptq", ["gptq"]),
        ("*fp16", ["lora-fp16", "full-fp16"]),
        ("11", ["gptq"]),
        (CELLS[1].cell_id, ["lora-bf16"]),
        (CELLS[1].cell_id[:6] + "*", ["lora-bf16"]),
        ("method=qlora", ["qlora-4bit"]),
        ("stream=true", ["lora-streaming-rejected", "full-streaming"]),
        ("precision=*16", ["lora-fp16", "lora-bf16", "full-fp16", "qlora-4bit"]),
        ("early_stopping=1", ["lora-early-stopping"]),
    ],
)
def test_a_word_chooses_cells(word: str, expected: list[str]) -> None:
    assert names(word) == expected


def test_words_add_up_and_ignore_takes_away_in_matrix_order() -> None:
    assert names("gptq", "lora-*", ignore=("*-fp16", "7")) == [
        "lora-bf16",
        "lora-gradient-checkpointing",
        "lora-rank-32",
        "lora-cosine",
        "lora-early-stopping",
        "gptq",
    ]


def test_every_cell_left_out_has_its_reason() -> None:
    selection = select_cells(CELLS, ["*fp16"], ["1"])

    reasons = {cell.name: reason for cell, reason in selection.left_out}

    assert reasons["lora-fp16"] == "left out by --ignore 1"
    assert reasons["gptq"] == "left out by --select *fp16"
    assert len(CELLS) == len(selection.chosen) + len(selection.left_out)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lora-fp61", "'lora-fp61' matches no cell; did you mean 'lora-fp16'"),
        ("12", "'12' matches no cell"),
        ("metod=lora", "unknown setting 'metod'; did you mean 'method' or 'model'?"),
        ("method=dpo", "method is one of: full, gptq, lora, qlora"),
    ],
)
@pytest.mark.parametrize("option", ["select", "ignore"])
def test_a_word_that_matches_nothing_is_an_error(word: str, message: str, option: str) -> None:
    with pytest.raises(UsageError) as caught:
        select_cells(CELLS, **{option: [word]})

    assert message in str(caught.value)


def test_all_wrong_words_are_named_at_once() -> None:
    with pytest.raises(UsageError, match=r"'12' matches no cell\n'13' matches no cell"):
        select_cells(CELLS, ["12", "13"])


def test_ignoring_everything_is_an_error() -> None:
    with pytest.raises(UsageError, match="nothing is left to run"):
        select_cells(CELLS, ["gptq"], ["method=gptq"])


def test_one_word_finds_one_cell() -> None:
    assert find_cell(CELLS, "7").name == "lora-streaming-rejected"

    with pytest.raises(UsageError, match="names 7 cells"):
        find_cell(CELLS, "method=lora")


def past(cell_ids: Iterable[str]) -> Mapping[str, LastResult]:
    """Know all cells but the last: the second failed, the third was slow and hit its limit."""
    outcomes = {1: Outcome.FAILED, 2: Outcome.TIMEOUT, 6: Outcome.REJECTED_AS_EXPECTED}
    last = {}
    for place, cell in enumerate(CELLS[:-1]):
        outcome, wall_s = outcomes.get(place, Outcome.PASSED), 9.0 if place == 2 else 1.0
        last[cell.cell_id] = LastResult(status=outcome.status, wall_s=wall_s)
    return {cell_id: last[cell_id] for cell_id in cell_ids if cell_id in last}


@pytest.mark.parametrize(
    ("select", "ignore", "places"),
    [
        (["failed"], [], [1, 2]),
        (["crashed"], [], [2]),
        (["passed"], [], [0, 3, 4, 5, 6, 7, 8, 9]),
        (["new"], [], [10]),
        (["slow"], [], [2]),
        (["failed", "gptq"], ["crashed"], [1, 10]),
        ([], ["passed", "failed"], [10]),
    ],
)
def test_a_word_asks_how_a_cell_ended_last(
    select: list[str], ignore: list[str], places: list[int]
) -> None:
    selection = select_cells(CELLS, select, ignore, past)

    assert [cell.number - 1 for cell in selection.chosen] == places


def test_without_a_history_every_cell_is_new_and_nothing_else_is_known() -> None:
    assert len(select_cells(CELLS, ["new"]).chosen) == len(CELLS)

    with pytest.raises(UsageError, match="'failed' asks the history, and there is none yet"):
        select_cells(CELLS, ["failed"])
    with pytest.raises(UsageError, match="'slow' asks the history, and none of these cells is in"):
        select_cells(CELLS, ["gptq"], ["slow"], lambda cell_ids: {})


def test_a_word_that_names_nothing_now_is_no_mistake_beside_others() -> None:
    passed = past([CELLS[0].cell_id])

    selection = select_cells(CELLS, ["failed", "gptq"], [], lambda _: passed)

    assert [cell.name for cell in selection.chosen] == ["gptq"]
    with pytest.raises(UsageError, match="nothing is left to run: of no cell can it be said that"):
        select_cells(CELLS, ["failed", "crashed"], [], lambda _: passed)


def test_a_cell_of_that_name_has_precedence() -> None:
    cells = [replace(CELLS[0], name="new"), CELLS[1]]

    assert [cell.name for cell in select_cells(cells, ["new"]).chosen] == ["new"]


def test_the_history_is_asked_only_when_a_word_needs_it() -> None:
    def refuse(cell_ids: Iterable[str]) -> Mapping[str, LastResult]:
        raise AssertionError("nobody asked for it")

    assert select_cells(CELLS, ["gptq"], ["lora-*"], refuse).chosen


FULL = load_cells("full")


def test_features_and_expectations_are_words_too() -> None:
    packed = select_cells(FULL, ["feature=packing"], ["expect=rejected"]).chosen

    assert {"packing"} == {feature for cell in packed for feature in cell.features}
    assert {"full", "lora", "qlora", "qat"} == {cell.config["method"] for cell in packed}
    assert 13 * 4 == len(select_cells(FULL, ["feature=none"]).chosen)


def test_a_feature_that_does_not_exist_is_told_what_there_is() -> None:
    with pytest.raises(UsageError, match="feature is one of: all-tokens, checkpoints"):
        select_cells(FULL, ["feature=pakking"])
