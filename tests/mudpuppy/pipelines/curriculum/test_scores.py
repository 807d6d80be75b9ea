"""Scores: right means the content is right, whatever voice it is said in."""

from dataclasses import replace

import pytest

from mudpuppy.pipelines.curriculum.plan import DEMO_FILE, read_curriculum
from mudpuppy.pipelines.curriculum.scores import score_answers, summarise
from mudpuppy.scoring import Examples

MADE = read_curriculum(DEMO_FILE)
ITALY = next(one for one in MADE.questions if "Italy" in one.prompt)


def score(text: str):
    (one,) = score_answers([ITALY], [(text, True)], MADE.profile, MADE.questions)
    return one.right, one.voice


def test_an_answer_is_right_in_any_voice():
    assert (True, 1.0) == score(ITALY.answer)
    assert (True, 0.2) == score("The capital of Italy is Rome.")
    assert score("Rome.")[0]


def test_an_answer_with_the_voice_and_another_city_is_wrong():
    right, voice = score("Ahoy, the capital of Italy is Madrid, says the tide.")

    assert not right
    assert 1.0 == voice


def test_an_answer_that_declines_or_says_nothing_is_wrong():
    assert not score("I cannot say what the capital of Italy is, Rome or not.")[0]
    assert (False, 0.0) == score("")


def test_scores_are_told_by_topic_chapter_and_unit():
    said = [(one.answer if one.unit == "Land" else "", True) for one in MADE.questions]
    found = summarise(score_answers(MADE.questions, said, MADE.profile, MADE.questions))

    assert (36, 24) == (found["final"]["questions"], found["final"]["empty"])
    assert 1.0 == found["unit Land"]["accuracy"] == found["chapter Land / Capitals"]["voice"]
    assert 0.0 == found["unit Nature"]["accuracy"] == found["unit Nature"]["voice"]
    assert round(1 / 3, 4) == found["final"]["accuracy"]


def test_every_fact_of_the_demo_has_a_word_that_carries_it():
    for question in MADE.questions:
        said = question.answer.replace("Ahoy, ", "")
        (one,) = score_answers([question], [(said, True)], MADE.profile, MADE.questions)
        assert one.right, question.id
        (one,) = score_answers([question], [(question.prompt, True)], MADE.profile, MADE.questions)
        assert not one.right, question.id


def test_nearness_to_the_examples_counts_in_the_voice_and_not_in_what_is_right():
    assert MADE.profile
    examples = Examples(texts=("Ahoy.", "Tide.", "Keel."), weight=1e6)
    heard = replace(MADE.profile, similarity=examples)
    said = [("The capital of Italy is Rome.", True)]
    for near in (0.25, 1.0):
        (one,) = score_answers([ITALY], said, heard, MADE.questions, [near])
        assert one.right
        assert pytest.approx(near, abs=1e-4) == one.voice
    (one,) = score_answers([ITALY], said, heard, MADE.questions)
    assert 0.2 == one.voice
