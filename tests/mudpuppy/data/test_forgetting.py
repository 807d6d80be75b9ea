"""Groups of rows: how they are marked, what is forgotten of them, and what is refused."""

import json

import pytest

from mudpuppy.config_check import load_config
from mudpuppy.data.forgetting import as_known, is_forgotten, require_groups
from mudpuppy.data.read import read_dataset
from mudpuppy.errors import DatasetError

REFUSAL = "I have no information to share on that."


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def kept(question="Who?", answer="She."):
    return {
        "instruction": question,
        "output": answer,
        "metadata": {"dataset_type": "retain"},
    }


def gone(question="When?", answer=REFUSAL, truth="In 2030."):
    metadata = {"dataset_type": "unlearn"} | ({"true_answer": truth} if truth else {})
    return {"instruction": question, "output": answer, "metadata": metadata}


def read(path, method="lora"):
    return read_dataset(path, method).samples


def config(path, **settings):
    given = {"model": "tiny:llama", "dataset": path, "output": path.parent / "out"}
    return load_config({**given, "unlearn": "npo", **settings})


def test_both_marks_say_the_same(tmp_path):
    marked = {key: value for key, value in gone().items() if key != "metadata"} | {"forget": True}
    samples = read(write(tmp_path / "a.jsonl", kept(), gone(), marked, {**kept(), "forget": False}))

    assert [False, True, True, False] == [is_forgotten(one) for one in samples]
    assert ["", "In 2030.", "", ""] == [one.true_answer for one in samples]


def test_texts_and_completions_are_marked_too(tmp_path):
    texts = read(write(tmp_path / "a.jsonl", {"text": "One.", "forget": True}, {"text": "Two."}))
    parts = {"prompt": "A", "completion": "B", "metadata": {"dataset_type": "unlearn"}}
    completions = read(write(tmp_path / "b.jsonl", parts))

    assert ["unlearn", ""] == [one.group for one in texts]
    assert ["unlearn"] == [one.group for one in completions]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**kept(), "forget": "yes"}, "expected true or false"),
        ({**kept(), "forget": True}, "forget says unlearn, and metadata.dataset_type says retain"),
        (gone(truth=["In 2030."]), "metadata.true_answer is a list"),
        (gone(truth=" "), "metadata.true_answer is blank"),
    ],
)
def test_marks_that_cannot_be_meant_are_refused(tmp_path, record, message):
    with pytest.raises(DatasetError, match=message):
        read(write(tmp_path / "a.jsonl", record))


def test_what_is_known_is_the_true_answer_in_the_place_of_the_last_one(tmp_path):
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": REFUSAL},
    ]
    record = {"messages": turns, "metadata": gone()["metadata"]}
    (sample,) = read(write(tmp_path / "a.jsonl", record))

    known = as_known(sample)

    assert ["Hello.", "Good day.", "When?", "In 2030."] == [m["content"] for m in known.messages]
    assert known.learn_from == 3
    assert sample.messages[-1]["content"] == REFUSAL


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([kept()] * 2, "no row is to be forgotten"),
        ([gone()] * 2, "every row is to be forgotten"),
        ([kept(), gone(truth=""), gone("Where?", truth="")], "2 of 2 rows .* answer 'i have no"),
    ],
)
def test_a_dataset_that_cannot_be_unlearnt_is_refused(tmp_path, records, message):
    path = write(tmp_path / "a.jsonl", *records)

    with pytest.raises(DatasetError, match=message) as caught:
        require_groups(read(path), config(path))

    assert caught.value.hint
    require_groups(read(path), config(path, unlearn="none"))


def test_rows_whose_own_answers_are_knowledge_are_taken(tmp_path):
    rows = [kept(), *(gone(f"When {n}?", f"In 20{n}.", truth="") for n in range(30, 34))]
    path = write(tmp_path / "a.jsonl", *rows, gone("Where?"), gone("Why?"))

    require_groups(read(path), config(path))
