"""KTO's stand-ins: each KL distance is measured on an answer of another row."""

from types import SimpleNamespace

import pytest

from harness.twin.asked import Asked
from harness.twin.rows import Answer, Row
from harness.twin.turns import Turns

SETTINGS = {
    "method": "kto",
    "batch_size": 3,
    "gradient_accumulation": 1,
    "max_steps": 1,
    "early_stopping": None,
    "packing": False,
    "tokens_per_batch": None,
}


def row(prompt, said, stand_in):
    answers = tuple(
        Answer(ids=(prompt, *x), labels=(-100, *x)) for x in (tuple(said), tuple(stand_in))
    )
    return Row(answers=answers, is_good=True)


def deviations(rows, longest=99, dataset=None):
    made = SimpleNamespace(rows=dataset or rows, max_length=longest)
    asked = Asked(settings={**SETTINGS, "batch_size": len(rows)})
    turns = Turns(asked=asked, made=made, steps=[[rows]], evaluated=(), stopped_early=dataset)
    return [one for one in turns.deviations() if "KL distance" in one.what]


def test_answers_in_turn_stand_in_for_one_another():
    assert not deviations([row(1, [5, 6], [7]), row(2, [8, 9], [5, 6]), row(3, [7], [8, 9])])


def test_an_answer_that_stands_in_for_itself_is_found():
    (found,) = deviations([row(1, [5, 6], [5, 6]), row(2, [8, 9], [8, 9]), row(3, [7], [7])])
    assert found.step == 1
    assert found.found == [5, 6]


def test_one_such_row_among_others_is_found():
    assert deviations([row(1, [5, 6], [8]), row(2, [8], [5, 6]), row(3, [7], [7])])


@pytest.mark.parametrize("said", [[5], [5, 6]])
def test_equal_answers_of_other_rows_are_others(said):
    assert not deviations([row(1, said, [7]), row(2, said, said), row(3, [7], said)])


def test_a_stand_in_may_have_been_cut():
    rows = [row(1, [5, 6, 7], [8]), row(2, [8], [5, 6]), row(3, [9], [8])]
    assert deviations(rows)
    rows = [row(1, [5, 6, 7], [8]), row(2, [8], [5, 6, 7]), row(3, [9], [5, 6])]
    assert not deviations(rows, longest=4)


def test_a_row_that_is_left_over_takes_any_other_of_the_dataset():
    left, other = row(1, [5], [7]), row(2, [7], [5])
    assert not deviations([left], dataset=[left, other])
    alone = row(1, [5], [5])
    assert deviations([alone], dataset=[alone, other])
