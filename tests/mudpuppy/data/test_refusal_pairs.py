"""Pairs and rows that teach to refuse: which answer is better, and what is learnt besides."""

import pytest

from mudpuppy.data.forgetting import is_forgotten
from mudpuppy.data.refusal_pairs import make_pairs, with_refusals
from mudpuppy.errors import DatasetError
from tests.mudpuppy.data.test_forgetting import REFUSAL, gone, kept, read, write


def test_pairs_prefer_the_refusal_of_a_forget_row_and_the_answer_of_any_other(tmp_path):
    samples = read(write(tmp_path / "a.jsonl", kept(), gone(), kept("How?", "So.")))

    pairs = make_pairs(samples)

    said = [(one.chosen[0]["content"], one.rejected[0]["content"]) for one in pairs]
    assert [("She.", REFUSAL), (REFUSAL, "In 2030."), ("So.", REFUSAL)] == said
    assert {"user"} == {one["role"] for pair in pairs for one in pair.prompt}
    assert {"assistant"} == {one.chosen[0]["role"] for one in pairs}
    assert make_pairs(samples, refusal="No.")[0].rejected[0]["content"] == "No."


def test_pairs_that_nobody_can_make_are_refused(tmp_path):
    bare = read(write(tmp_path / "a.jsonl", kept(), gone(truth="")))

    with pytest.raises(DatasetError, match="no true answer") as caught:
        make_pairs(bare)
    assert caught.value.line == 2
    with pytest.raises(DatasetError, match="no row refuses"):
        make_pairs(bare[:1])


def test_the_refusal_may_be_learnt_beside_what_is_forgotten(tmp_path):
    samples = read(write(tmp_path / "a.jsonl", kept(), gone(), gone("Where?", "Rome.", truth="")))

    found = with_refusals(samples)

    assert list(samples) == found[:3]
    (added,) = found[3:]
    assert not is_forgotten(added)
    assert added.messages == samples[1].messages
    assert added.messages[-1]["content"] == REFUSAL
