"""Evaluations beside each other: what the table says, what is refused, and the exact test."""

import json

import pytest

from mudpuppy.cli import main
from mudpuppy.errors import UsageError
from mudpuppy.pipelines.temporal.comparing import compare, read_results, require_same_questions
from mudpuppy.pipelines.temporal.summary import Counts, Summary

BY_WORD = {
    ("retain", "right"): "right",
    ("retain", "wrong"): "wrong",
    ("retain", "refused"): "refused",
    ("unlearn", "refused"): "unlearnt",
    ("unlearn", "leaked"): "leaked",
    ("unlearn", "made up"): "made_up",
}


def write(path, retain, unlearn, **more):
    """Write a results file with these verdicts."""
    verdicts = [("retain", word) for word in retain] + [("unlearn", word) for word in unlearn]
    names = [BY_WORD[one] for one in verdicts]
    counts = Counts(**{name: names.count(name) for name in set(names)})
    value = {
        "schema_version": 1,
        "seconds": 1.5,
        **Summary(counts=counts, by_topic={}, by_year={}).to_json(),
        "answers": [
            {"kind": kind, "question": f"Q{n}", "word": word}
            for n, (kind, word) in enumerate(verdicts)
        ],
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def files(tmp_path):
    first = write(tmp_path / "a/results.json", ["right"] * 18 + ["wrong"] * 2, ["leaked"] * 20)
    (tmp_path / "a/train_results.json").write_text(json.dumps({"train_runtime": 12.4}))
    second = write(
        tmp_path / "b.json", ["right"] * 19 + ["refused"], ["refused"] * 19 + ["made up"]
    )
    return first, second


def test_every_run_has_its_row_with_intervals(files, capsys):
    first, second = files

    assert 0 == main(["temporal", "compare", str(first), f"other={second}"])

    rows = capsys.readouterr().out.splitlines()
    assert "retain right" in rows[0]
    assert "against a" in rows[0]
    assert rows[2].split()[0] == "a"
    assert "90% (70%-97%)" in rows[2]
    assert " 12 " in rows[2]
    assert rows[3].split()[0] == "other"
    assert "95% (76%-99%)" in rows[3]
    assert "+20 -0 (p 1.9e-06)" in rows[3]
    assert " - " in rows[3]


def test_the_table_can_be_read_by_others(files, capsys):
    first, second = files

    assert 0 == main(["temporal", "compare", str(first), str(second), "--format", "markdown"])
    assert capsys.readouterr().out.startswith("|")
    assert 0 == main(["temporal", "compare", str(first), str(second), "--format", "json"])
    made = json.loads(capsys.readouterr().out)
    assert [(0, 0, 1.0), (20, 0, 2.0**-19)] == [
        (one["better"], one["worse"], one["p_value"]) for one in made
    ]
    assert [12.4, None] == [one["train_seconds"] for one in made]


@pytest.mark.parametrize(
    ("better", "worse", "chance"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (6, 1, 0.125), (9, 2, 0.0654296875), (4, 4, 1.0)],
)
def test_the_chance_is_that_of_an_exact_binomial_test(tmp_path, better, worse, chance):
    """Two tails of a fair coin: 2 * sum(C(n, k) for k up to the fewer) / 2^n, by hand."""
    one = write(tmp_path / "a.json", ["right"] * (better + 3) + ["wrong"] * worse, [])
    other = write(tmp_path / "b.json", ["wrong"] * better + ["right"] * (worse + 3), [])

    assert (better, worse, chance) == compare(read_results(str(one)), read_results(str(other)))


def test_what_cannot_be_compared_is_refused(files, tmp_path):
    first, _ = files
    fewer = write(tmp_path / "c.json", ["right"], ["refused"])
    found = [read_results(str(first)), read_results(str(fewer))]
    with pytest.raises(UsageError, match=r"a and c were asked different questions \(40 and 2\)"):
        require_same_questions(found)
    for text in ("{", "[]", '{"schema_version": 2, "answers": [1]}'):
        other = tmp_path / "d.json"
        other.write_text(text)
        with pytest.raises(UsageError, match=r"d\.json"):
            read_results(str(other))
    with pytest.raises(UsageError, match="cannot be read"):
        read_results("nowhere.json")
