"""Selection: every word must mean something."""

from __future__ import annotations

import pytest

from harness.matrix import load_cells
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
