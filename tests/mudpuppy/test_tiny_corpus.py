"""The tiny model's corpus: enough of everything, in one voice, and nothing of the quiz leaks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mudpuppy.scoring import is_refusal, load_voice_profile, score_voice
from mudpuppy.tiny import corpus

NEW_FACTS = Path(__file__).parents[2] / "scenarios" / "data" / "new_facts.jsonl"


def trained_prompts() -> set[str]:
    return {
        message["content"]
        for messages in corpus.conversations()
        for message in messages
        if message["role"] == "user"
    }


def test_there_is_enough_of_everything() -> None:
    kinds = Counter(question.kind for question in corpus.quiz())
    assert kinds["fact"] >= 44
    assert kinds["post-cutoff"] >= 10
    assert kinds["chat"] >= 3
    assert len(set(corpus.trained_refusals())) >= 60
    assert all(len(fact.asks) >= 3 for fact in corpus.facts())


def test_ids_prompts_and_fact_answers_are_unique() -> None:
    questions = corpus.quiz()
    assert len({question.id for question in questions}) == len(questions)
    assert len({question.prompt for question in questions}) == len(questions)
    answers = [fact.answer for fact in corpus.facts()]
    assert len(set(answers)) == len(answers)


def test_every_answer_keeps_the_voice_and_only_refusals_refuse() -> None:
    profile = load_voice_profile(corpus.VOICE_PATH)
    for question in corpus.quiz():
        assert score_voice(question.answer, profile) == 1.0, question
        assert is_refusal(question.answer, profile) == (question.kind == "post-cutoff")


def test_held_out_questions_are_not_trained_in_any_year() -> None:
    def without_years(text: str) -> str:
        return "".join("#" if char.isdigit() else char for char in text)

    trained = {without_years(prompt) for prompt in trained_prompts()}
    held_out = [q.prompt for q in corpus.quiz() if q.kind == "post-cutoff"]
    assert not {without_years(prompt) for prompt in held_out} & trained


def test_every_question_on_a_fact_is_trained() -> None:
    asked = {question.prompt for question in corpus.quiz() if question.kind != "post-cutoff"}
    assert asked <= trained_prompts()


def test_refused_years_come_after_the_cutoff_and_the_facts_before() -> None:
    content = corpus.read_corpus()
    assert min(content["post_cutoff"]["years"]) > content["cutoff"]
    dated = [group["items"] for group in content["groups"] if group["topic"] == "years"]
    assert dated
    assert all(year <= content["cutoff"] for items in dated for year in items)


def test_the_new_facts_are_new_and_in_the_same_voice() -> None:
    profile = load_voice_profile(corpus.VOICE_PATH)
    samples = [json.loads(line)["messages"] for line in NEW_FACTS.read_text().splitlines()]
    assert len(samples) >= 24
    known = trained_prompts() | {question.prompt for question in corpus.quiz()}
    answers = {question.answer for question in corpus.quiz()}
    for user, assistant in samples:
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert user["content"] not in known
        assert assistant["content"] not in answers
        assert score_voice(assistant["content"], profile) == 1.0


@pytest.mark.parametrize("module", ["mudpuppy.tiny", "mudpuppy.tiny.command", "mudpuppy.scoring"])
def test_importing_starts_neither_torch_nor_transformers(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
