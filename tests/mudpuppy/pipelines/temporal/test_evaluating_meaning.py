"""`temporal evaluate --embeddings`: other words count, wrong ones do not, a blind model is told."""

from __future__ import annotations

import json

import pytest

from mudpuppy.cli import main
from mudpuppy.pipelines.temporal import evaluating
from tests.mudpuppy.pipelines.temporal.making_records import FACTS, LATER, mixed
from tests.mudpuppy.pipelines.temporal.test_evaluating import PERFECT, TRUTHS, Scripted
from tests.mudpuppy.small_embedder import save_embedder

pytest.importorskip("sentence_transformers", reason="pip install 'mudpuppy[embeddings]'")

SPIDER = "How many legs does a spider have?"
OTHER_WORDS = "Arachnids possess octuple limbs."
WRONG = "Arachnids possess honey."
PHONE = "What is a smartphone?"
TOLD = "A handset that executes programs."
SAME = {
    "arachnids": "spider",
    "possess": "has",
    "octuple": "eight",
    "limbs": "legs",
    "handset": "phone",
    "executes": "runs",
    "programs": "applications",
    "mobile": "phone",
    "smartphone": "phone",
    **dict.fromkeys(("a", "is", "that"), "the"),
}


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Return a function that evaluates what is said and returns exit code, verdicts, metrics."""
    mixed(tmp_path / "test.jsonl")

    def go(said, *, embedder=None):
        monkeypatch.setattr(evaluating, "open_local", lambda *_, **__: Scripted(said))
        output = tmp_path / "r.json"
        command = ["temporal", "evaluate", "--model_path", "x", "--output", str(output)]
        command += ["--test_file", str(tmp_path / "test.jsonl")]
        if embedder is not None:
            command += ["--embeddings", str(embedder)]
        code = main(command)
        if not output.exists():
            return code, None, None
        results = json.loads(output.read_text())
        verdicts = {one["question"]: (one["word"], one["reason"]) for one in results["answers"]}
        return code, verdicts, results["metrics"]

    return go


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    known = [*TRUTHS.values(), *PERFECT.values(), OTHER_WORDS, WRONG, TOLD]
    return save_embedder(tmp_path_factory.mktemp("embedder"), known, SAME)


def test_a_right_answer_in_other_words_counts_with_a_model_of_meaning_alone(evaluate, embedder):
    said = {**PERFECT, SPIDER: OTHER_WORDS}
    _, by_words, metrics = evaluate(said)
    assert by_words[SPIDER][0] == "wrong"
    assert metrics["retain"]["right"]["count"] == len(FACTS) - 1

    code, by_meaning, metrics = evaluate(said, embedder=embedder)
    assert code == 0
    assert by_meaning[SPIDER][0] == "right"
    assert "means the same" in by_meaning[SPIDER][1]
    assert metrics["retain"]["right"]["count"] == len(FACTS)


def test_a_wrong_answer_stays_wrong_and_a_refusal_a_refusal(evaluate, embedder):
    _, found, metrics = evaluate({**PERFECT, SPIDER: WRONG}, embedder=embedder)
    assert found[SPIDER][0] == "wrong"
    assert metrics["retain"]["right"]["count"] == len(FACTS) - 1
    assert metrics["unlearn"]["refused"]["count"] == len(LATER)


def test_what_was_to_be_forgotten_is_a_leak_in_other_words_too(evaluate, embedder):
    said = {**PERFECT, PHONE: TOLD}
    assert evaluate(said)[1][PHONE][0] == "made up"
    word, reason = evaluate(said, embedder=embedder)[1][PHONE]
    assert word == "leaked"
    assert "in other words" in reason


def test_a_model_that_maps_everything_to_one_point_ends_with_3(evaluate, tmp_path, capsys):
    dead = save_embedder(tmp_path / "dead", TRUTHS.values(), dead=True)
    assert evaluate(PERFECT, embedder=dead) == (3, None, None)
    assert "finds unrelated answers 1.00 alike" in capsys.readouterr().err


def test_a_folder_without_a_model_ends_with_2(evaluate, tmp_path, capsys):
    assert evaluate(PERFECT, embedder=tmp_path / "nothing") == (2, None, None)
    assert "no model of sentence-transformers" in capsys.readouterr().err
