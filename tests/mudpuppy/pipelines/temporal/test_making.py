"""`temporal data`: the layout for the embedded model, and the check of any layout."""

from __future__ import annotations

import json

import pytest

from mudpuppy.cli import main
from mudpuppy.errors import OutputError, UsageError
from mudpuppy.pipelines.temporal.layout import FILES
from mudpuppy.pipelines.temporal.making import check, write_tiny, year_of
from mudpuppy.pipelines.temporal.records import read_mixed, read_splits
from mudpuppy.scoring import normalise
from mudpuppy.tiny.corpus import facts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "datasets"
    write_tiny(folder)
    return folder


def test_what_the_model_knows_of_later_years_is_to_be_unlearnt(data):
    train, held_out = read_splits({n: data / p for n, p in FILES.items() if n != "dev_path"})
    dev = read_mixed(data / FILES["dev_path"])
    later = {fact.answer for fact in facts() if (year_of(fact) or 0) > 1960}

    assert len(later) == 13
    for part in (train, held_out, dev):
        unlearnt = [record for record in part if record.kind == "unlearn"]
        assert {record.truth for record in unlearnt} == later
        assert all(record.year is not None and record.year > 1960 for record in unlearnt)
        kept = [record for record in part if record.kind == "retain"]
        assert not {record.output for record in kept} & later
        assert all((record.year or 0) <= 1960 for record in kept)
        assert len(kept) >= 45
    assert sum(record.kind == "unlearn" for record in dev) == 39


def test_no_question_stands_in_two_files(data):
    asked = [
        normalise(json.loads(line)["instruction"])
        for path in FILES.values()
        for line in (data / path).read_text(encoding="utf-8").splitlines()
    ]
    assert len(asked) == len(set(asked))


def test_validation_asks_in_words_that_training_has_not(data):
    last = {normalise(fact.asks[-1]) for fact in facts()}
    train, held_out = read_splits({n: data / p for n, p in FILES.items() if n != "dev_path"})
    assert not [r for r in train if any(ask in normalise(r.question) for ask in last)]
    assert held_out


def test_the_command_writes_checks_and_counts(tmp_path, capsys):
    out = tmp_path / "datasets"
    assert main(["temporal", "data", "--from", "tiny", str(out), "--cutoff", "2000"]) == 0
    assert main(["temporal", "data", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("complete, no line is unusable") == 2
    assert "years 2002 to 2022" in said
    (out / FILES["unlearn_val"]).unlink()
    assert main(["temporal", "data", str(out)]) == 2
    assert "unlearn_val.jsonl: does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(("cutoff", "what"), [(2030, "unlearn"), (1000, "keep")])
def test_a_cutoff_that_leaves_nothing_is_refused(tmp_path, cutoff, what):
    with pytest.raises(UsageError, match=f"leaves nothing to {what}"):
        write_tiny(tmp_path / "x", cutoff=cutoff)
    assert not (tmp_path / "x").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(OutputError, match="is not empty"):
        write_tiny(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(OutputError, match="cannot be written"):
        write_tiny(tmp_path / "mine" / "below")


def test_from_tiny_needs_a_folder(capsys):
    assert main(["temporal", "data", "--from", "tiny"]) == 2
    assert "needs the folder" in capsys.readouterr().err


def test_questions_of_the_dev_subset_that_are_trained_are_told(tmp_path):
    write_tiny(tmp_path / "d")
    dev, train = (tmp_path / "d" / FILES[name] for name in ("dev_path", "retain_train"))
    assert not any("of memory" in line for line in check(tmp_path / "d"))
    kept = next(line for line in dev.read_text().splitlines() if '"retain"' in line)
    train.write_text(f"{train.read_text()}{kept}\n")
    lines = check(tmp_path / "d")
    assert any("1 of 84 questions of the dev subset are trained, too" in line for line in lines)
