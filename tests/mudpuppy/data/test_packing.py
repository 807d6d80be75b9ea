"""Packing keeps every sample, overfills no row, and predicts nothing across documents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.data.packing import collate_packed, pack, plan_rows
from mudpuppy.data.render import RenderedSample


def sample(*ids: int) -> RenderedSample:
    return RenderedSample(input_ids=list(ids), labels=list(ids), truncated=False)


@given(
    lengths=st.lists(st.integers(1, 50), max_size=60),
    spare=st.integers(0, 30),
    seed=st.integers(0, 9),
)
def test_every_sample_once_and_no_row_too_full(lengths, spare, seed):
    capacity = max(lengths, default=1) + spare

    rows = plan_rows(lengths, capacity, seed=seed)

    assert list(range(len(lengths))) == sorted(index for row in rows for index in row)
    assert all(row and sum(lengths[index] for index in row) <= capacity for row in rows)
    assert rows == plan_rows(lengths, capacity, seed=seed)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), seed=st.integers(0, 9))
def test_it_is_best_fit_with_the_longest_first(lengths, seed):
    """The same fill as the textbook's loop over all rows."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting, key=lambda row: spaces[row])] -= length
        else:
            spaces.append(50 - length)

    rows = plan_rows(lengths, 50, seed=seed)

    assert sorted(spaces) == sorted(50 - sum(lengths[index] for index in row) for row in rows)


def test_the_seed_settles_who_meets_whom():
    lengths = [10] * 40

    assert plan_rows(lengths, 40, seed=1) != plan_rows(lengths, 40, seed=2)


@pytest.mark.parametrize("length", [0, 9])
def test_samples_that_do_not_fit_are_refused(length):
    with pytest.raises(ValueError, match="does not fit"):
        plan_rows([3, length], 8, seed=0)


def test_a_row_says_where_its_documents_end():
    (row,) = pack([sample(1, 2, 3), sample(4, 5)], 8, seed=0)

    assert {
        "input_ids": [1, 2, 3, 4, 5],
        "labels": [-100, 2, 3, -100, 5],
        "seq_lengths": [3, 2],
    } == row.columns()


def test_a_batch_is_one_row_with_the_longest_documents_first():
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, -100], "seq_lengths": [2, 1]}]
    rows.append({"input_ids": [4, 5, 6], "labels": [-100, 5, 6], "seq_lengths": [3]})

    batch = collate_packed(rows)

    assert (3, 2, 1) == batch["document_lengths"]
    assert [[4, 5, 6, 1, 2, 3]] == batch["input_ids"].tolist()
    assert [[-100, 5, 6, -100, 2, -100]] == batch["labels"].tolist()
    assert [[0, 1, 2, 0, 1, 0]] == batch["position_ids"].tolist()
