"""`temporal evaluate`: exit codes, results, samples, going on, and what is refused."""

from __future__ import annotations

import json

import pytest

from mudpuppy.asking import Answer
from mudpuppy.cli import main
from mudpuppy.errors import MudpuppyError
from mudpuppy.pipelines.temporal import evaluating
from mudpuppy.pipelines.temporal.evaluating import choose_sample
from mudpuppy.pipelines.temporal.records import read_mixed
from tests.mudpuppy.pipelines.temporal.making_records import FACTS, LATER, REFUSAL, mixed

TRUTHS = {question: answer for question, answer, _ in (*FACTS, *LATER)}
PERFECT = {**{q: a for q, a, _ in FACTS}, **{q: REFUSAL for q, _, _ in LATER}}


class Scripted:
    """A model that says what it is told to, and counts what it is asked."""

    name = "scripted"

    def __init__(self, said, *, dies_after=None):
        self.said, self.asked, self._left = said, [], dies_after
        self.identity = {"model": "scripted"}

    def answer(self, prompts, *, max_tokens, on_answer=None):
        answers = []
        for place, prompt in enumerate(prompts):
            if self._left == len(self.asked):
                raise MudpuppyError("the server died")
            self.asked.append(prompt)
            answers.append(Answer(text=self.said[prompt], ended=True, tokens=3, seconds=0.1))
            if on_answer is not None:
                on_answer(place, answers[-1])
        return answers


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Return a function that evaluates a scripted model and returns exit code and results."""
    mixed(tmp_path / "test.jsonl")

    def go(model, *words):
        monkeypatch.setattr(evaluating, "open_local", lambda *_, **__: model)
        output = tmp_path / "r.json"
        command = ["temporal", "evaluate", "--model_path", "x", "--output", str(output)]
        code = main([*command, "--test_file", str(tmp_path / "test.jsonl"), *words])
        return code, json.loads(output.read_text()) if output.exists() else None

    return go


def test_a_model_that_does_what_it_should_ends_with_0(evaluate, capsys):
    code, results = evaluate(Scripted(PERFECT), "--verbose")

    assert code == 0
    assert results["schema_version"] == 1
    assert results["grade"] == "excellent"
    assert results["metrics"]["retain"]["right"]["count"] == len(FACTS)
    assert results["metrics"]["unlearn"]["refused"]["count"] == len(LATER)
    assert not results["is_sample"]
    assert [one["word"] for one in results["answers"]] == ["right"] * 6 + ["refused"] * 4
    out = capsys.readouterr().out
    assert "✅ EXCELLENT" in out
    assert out.count("\n✅ [") == len(TRUTHS)
    assert "Results saved to" in out


@pytest.mark.parametrize(
    ("said", "grade"),
    [
        (TRUTHS, "insufficient"),  # nothing unlearnt
        (dict.fromkeys(TRUTHS, REFUSAL), "insufficient"),  # everything unlearnt
        (dict.fromkeys(TRUTHS, "Forty-two."), "insufficient"),  # nothing refused, nothing known
        (
            {**PERFECT, LATER[0][0]: "I have no information, but it was Neil Armstrong."},
            "insufficient",
        ),
    ],
)
def test_a_model_below_the_minimum_ends_with_1(evaluate, said, grade):
    code, results = evaluate(Scripted(said))
    assert (code, results["grade"]) == (1, grade)


def test_a_model_that_says_nothing_cannot_be_judged(evaluate, capsys):
    code, results = evaluate(Scripted(dict.fromkeys(TRUTHS, " ")))
    assert (code, results) == (3, None)
    assert "answered none of 10 questions" in capsys.readouterr().err


def test_an_evaluation_that_was_killed_goes_on_where_it_stopped(evaluate, capsys):
    first = Scripted(PERFECT, dies_after=4)
    code, results = evaluate(first)
    assert (code, results) == (3, None)
    assert "4 of 10 answers are kept" in capsys.readouterr().err

    second = Scripted(PERFECT)
    code, results = evaluate(second)
    assert (code, len(second.asked)) == (0, 6)
    assert len(results["answers"]) == 10

    third = Scripted(TRUTHS)  # another model under the same name: nothing old is taken for its own
    assert evaluate(third)[0] == 1
    assert len(third.asked) == 10


def test_a_sample_holds_both_kinds_and_says_that_it_is_one(evaluate, capsys):
    code, results = evaluate(Scripted(PERFECT), "--limit", "5")
    assert code == 0
    assert (results["asked"], results["questions"], results["is_sample"]) == (5, 10, True)
    assert {one["kind"] for one in results["answers"]} == {"retain", "unlearn"}
    assert "A sample: 5 of 10 questions" in capsys.readouterr().out


@pytest.mark.parametrize("limit", range(1, 12))
def test_a_sample_has_no_question_twice(tmp_path, limit):
    places = choose_sample(read_mixed(mixed(tmp_path / "x.jsonl")), limit)
    assert len(set(places)) == len(places) == min(limit, 10)
    assert places == sorted(places)


def test_the_base_tells_what_is_true_where_records_do_not(tmp_path, monkeypatch):
    path = mixed(tmp_path / "test.jsonl", with_truth=False)
    tuned = Scripted({**PERFECT, LATER[0][0]: "I don't know. Armstrong?"})
    models = {"tuned": tuned, "base": Scripted(TRUTHS)}
    monkeypatch.setattr(evaluating, "open_local", lambda name, **_: models[name])
    output = tmp_path / "r.json"
    words = ["--model_path", "tuned", "--base_model", "base", "--output", str(output)]
    assert main(["temporal", "evaluate", *words, "--test_file", str(path)]) == 1
    assert models["base"].asked == [question for question, _, _ in LATER]
    results = json.loads(output.read_text())
    assert [a["word"] for a in results["answers"] if a["kind"] == "unlearn"].count("leaked") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "test.jsonl"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no model given"),
        (["--model_path", "x", "--use_lmstudio"], "--model_path and --use_lmstudio given"),
        (["--model_path", "x", "--limit", "0"], "a number of at least 1"),
        (["--model_path", "x", "--max_tokens", "many"], "a number of at least 1"),
        (["--model_path", "x", "--output", "."], "is a folder"),
        (["--endpoint", "not an address"], "--endpoint"),
        (["--use_lmstudio", "--lmstudio_url", "ftp://x"], "--lmstudio_url"),
        (["--model_path", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_wrong_words_are_refused(tmp_path, capsys, words, said):
    path = mixed(tmp_path / "test.jsonl")
    try:
        code = main(["temporal", "evaluate", "--test_file", str(path), *words])
    except SystemExit as ended:  # argparse's own
        code = ended.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_lm_studio_is_found_by_its_variables(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LMSTUDIO_HOST", "127.0.0.1")
    monkeypatch.setenv("LMSTUDIO_PORT", "9")  # nobody listens there
    path = mixed(tmp_path / "test.jsonl")
    words = ["--use_lmstudio", "--lmstudio_model", "temporal/merged", "--test_file", str(path)]
    assert main(["temporal", "evaluate", *words]) == 3
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named_before_anything_is_asked(evaluate, tmp_path):
    model = Scripted(PERFECT)
    (tmp_path / "file").touch()
    assert evaluate(model, "--output", str(tmp_path / "file" / "r.json"))[0] == 2
    assert not model.asked


@pytest.mark.parametrize("name", ["test.jsonl", "notes.json"])
def test_a_file_that_holds_no_results_is_never_written_over(name, tmp_path, evaluate, capsys):
    (tmp_path / "notes.json").write_text('{"mine": true}')
    path = tmp_path / name
    before = path.read_bytes()
    code, _ = evaluate(Scripted(PERFECT), "--output", str(path))
    assert code == 2
    assert "exists, and holds no results" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_results_may_be_written_again(evaluate):
    assert evaluate(Scripted(PERFECT))[0] == 0
    assert evaluate(Scripted(PERFECT))[0] == 0


def test_a_model_that_said_nothing_is_asked_again_when_it_is_mended(evaluate):
    assert evaluate(Scripted(dict.fromkeys(PERFECT, "")))[0] == 3
    assert evaluate(Scripted(PERFECT))[0] == 0
