"""Records are read with every problem of every file at once, and with where each lies."""

from __future__ import annotations

import pytest

from mudpuppy.errors import DatasetError
from mudpuppy.pipelines.temporal.layout import FILES, default_path, find_records
from mudpuppy.pipelines.temporal.records import read_mixed, read_splits, split_dev
from tests.mudpuppy.pipelines.temporal.making_records import (
    FACTS,
    LATER,
    REFUSAL,
    mixed,
    retained,
    unlearnt,
    write,
)


def layout(folder, **rows):
    """Write the four files; a name that is given replaces its rows, None leaves the file out."""
    made = {
        "retain_train": [retained(*fact) for fact in FACTS[:4]],
        "retain_val": [retained(*fact) for fact in FACTS[4:]],
        "unlearn_train": [unlearnt(*later) for later in LATER[:2]],
        "unlearn_val": [unlearnt(*later) for later in LATER[2:]],
    } | rows
    for name, lines in made.items():
        if lines is not None:
            write(folder / FILES[name], lines)
    return {name: folder / FILES[name] for name in made}


def test_the_four_files_become_what_is_trained_and_what_is_evaluated(tmp_path):
    train, held_out = read_splits(layout(tmp_path))

    assert [record.kind for record in train] == ["retain"] * 4 + ["unlearn"] * 2
    assert [record.kind for record in held_out] == ["retain"] * 2 + ["unlearn"] * 2
    first = train[4]
    assert first.question == LATER[0][0]
    assert first.output == REFUSAL
    assert first.truth == "Neil Armstrong, on 20 July 1969."
    assert (first.year, first.topic) == (1969, "later")
    assert first.sample.group == "unlearn"
    assert first.sample.true_answer == first.truth
    assert first.where == f"{tmp_path / FILES['unlearn_train']}:1"


def test_everything_that_is_wrong_is_told_at_once(tmp_path):
    paths = layout(
        tmp_path,
        retain_train=[
            retained(*FACTS[0]),
            {"instruction": "A?", "output": "B."},
            {"instruction": "A?", "output": "B.", "metadata": {"dataset_type": "retian"}},
            "{broken",
            {"question": "A?", "metadata": {"dataset_type": "retain"}},
        ],
        unlearn_train=[unlearnt(*LATER[0]), unlearnt(FACTS[0][0].upper()), retained(*FACTS[1])],
        unlearn_val=None,
        retain_val=[retained(*FACTS[0]), retained(*FACTS[5])],
    )

    with pytest.raises(DatasetError) as caught:
        read_splits(paths)

    text = str(caught.value)
    retain, unlearn = paths["retain_train"], paths["unlearn_train"]
    for wanted in (
        f"{retain}:2: has no metadata.dataset_type",
        f"{retain}:3: metadata.dataset_type is 'retian', expected retain or unlearn; did you mean "
        "'retain'?",
        f"{retain}:4: not JSON",
        f"{retain}:5: no usable field",
        f"{unlearn}:3: metadata.dataset_type is retain in a file of unlearn records",
        f"{paths['unlearn_val']}: does not exist",
        f"{unlearn}:2: the question",
        f"and of the retain set at {retain}:1: it cannot be kept and unlearnt",
        f"{paths['retain_val']}:1: the question",
        f"is trained as {retain}:1",
        "hint: ",
        "mud-puppy temporal data --from tiny",
    ):
        assert wanted in text
    assert caught.value.exit_code == 2


def test_a_missing_file_names_what_lies_beside_it(tmp_path):
    mixed(tmp_path / "dev_subset.jsonl")
    with pytest.raises(DatasetError, match=r"does not exist; did you mean 'dev_subset\.jsonl'\?"):
        read_mixed(tmp_path / "dev_subste.jsonl")


def test_a_missing_split_is_not_taken_for_another_one(tmp_path):
    mixed(tmp_path / "retain_train.jsonl")
    with pytest.raises(DatasetError, match="does not exist") as caught:
        read_mixed(tmp_path / "retain_val.jsonl")
    assert "did you mean" not in str(caught.value)


def test_a_year_in_words_is_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", [retained("Q?", "A.", year="nineteen")])
    with pytest.raises(DatasetError, match=r"metadata\.year is 'nineteen', expected"):
        read_mixed(path)


def test_a_long_list_of_problems_is_cut_and_counted(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"instruction": "A?", "output": "B."}] * 50)
    with pytest.raises(DatasetError, match="and 30 more") as caught:
        read_mixed(path)
    assert str(caught.value).count("\n") < 25


def test_an_unlearn_record_must_not_teach_the_true_answer(tmp_path):
    row = unlearnt("Who?", "Neil Armstrong.")
    path = write(tmp_path / "x.jsonl", [{**row, "output": "neil  Armstrong"}])
    with pytest.raises(DatasetError, match="the output is the true answer"):
        read_mixed(path)


def test_an_empty_file_and_a_folder_are_no_records(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DatasetError, match="holds no record"):
        read_mixed(tmp_path / "empty.jsonl")
    with pytest.raises(DatasetError, match="is a folder"):
        read_mixed(tmp_path)


def test_years_are_read_from_dates_and_topics_from_categories(tmp_path):
    metadata = {"dataset_type": "retain", "date": "circa 1912-04-15", "category": "ships"}
    path = write(
        tmp_path / "x.jsonl", [{"instruction": "Q?", "output": "A.", "metadata": metadata}]
    )
    (record,) = read_mixed(path)
    assert (record.year, record.topic) == (1912, "ships")


def test_a_dev_run_holds_a_tenth_out_the_same_every_time(tmp_path):
    read = read_mixed(mixed(tmp_path / "dev.jsonl"))
    train, held_out = split_dev(read, 7)
    assert (len(train), len(held_out)) == (9, 1)
    assert {one.where for one in (*train, *held_out)} == {one.where for one in read}
    assert (train, held_out) == split_dev(read, 7)
    assert train != split_dev(read, 8)[0]
    with pytest.raises(DatasetError, match="one record cannot be split"):
        split_dev(read[:1], 7)


def test_wiki_data_is_where_the_records_lie(tmp_path, monkeypatch):
    monkeypatch.delenv("WIKI_DATA", raising=False)
    assert str(default_path("retain_val")) == "datasets/retain/retain_val.jsonl"
    monkeypatch.setenv("WIKI_DATA", str(tmp_path))
    assert default_path("dev_path") == tmp_path / "datasets/dev/dev_subset.jsonl"
    mixed(tmp_path / "datasets/dev/dev_subset.jsonl")
    relative = default_path("dev_path").relative_to(tmp_path)
    monkeypatch.chdir("/")
    assert find_records(relative) == default_path("dev_path")
