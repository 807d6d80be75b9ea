"""Answers in other words than the quiz's are right when they say what carries the answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.agreement import find_idle, find_keys, key_recall, token_f1
from mudpuppy.scoring import Question

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima", "Cuba": "Havana"}
QUESTIONS = [
    Question(
        id=land,
        prompt=f"What is the capital of {land}?",
        answer=f"Well now, the capital of {land} is {city}, so the reeds say.",
        topic="t",
        kind="fact",
    )
    for land, city in CAPITALS.items()
]


def test_the_key_words_are_those_of_the_fact():
    assert find_keys(QUESTIONS) == tuple(frozenset({city.lower()}) for city in CAPITALS.values())


@pytest.mark.parametrize(
    ("answer", "share"), [("Paris.", 1), ("I say PARIS!", 1), ("Lyon", 0), ("", 0)]
)
def test_a_short_answer_is_as_right_as_a_long_one(answer, share):
    assert key_recall(answer, find_keys(QUESTIONS)[0]) == share


def test_without_key_words_nothing_is_said():
    same = [QUESTIONS[0]] * 4
    assert find_keys(same)[0] == frozenset()
    with pytest.raises(ValueError, match="no word"):
        key_recall("Paris", frozenset())


@pytest.mark.parametrize(
    ("answer", "f1"),
    [("a b c", 1.0), ("A, B; c!", 1.0), ("a", 0.5), ("x y", 0.0), ("", 0.0), ("a a a", 1 / 3)],
)
def test_f1_counts_shared_words(answer, f1):
    assert token_f1(answer, "a b c") == pytest.approx(f1)


@given(st.text(), st.text())
def test_f1_is_a_share_and_symmetric(one, other):
    assert 0 <= token_f1(one, other) <= 1
    assert token_f1(one, other) == token_f1(other, one)


RIGHT = [question.answer for question in QUESTIONS]


def score(said, questions=QUESTIONS):
    idle = find_idle(questions, said, [question.answer for question in questions])
    return [token_f1(text, q.answer, i) for text, q, i in zip(said, questions, idle, strict=True)]


def test_what_is_said_whatever_is_asked_is_no_knowledge():
    assert score(RIGHT) == score(list(CAPITALS.values())) == [1] * 5
    assert score(["Well now, the capital is mud, so the reeds say."] * 5) == [0] * 5
    assert score([text.replace(text.split()[-5], "Lyon,") for text in RIGHT]) == [0] * 5


def test_words_of_a_topic_are_no_knowledge_either():
    others = [
        Question(id=str(n), prompt=f"How?{n}", answer=f"Deed {n}{n}", topic="other", kind="fact")
        for n in range(30)
    ]
    questions = [*QUESTIONS, *others]
    wrong = ["Well now, the capital is mud, so the reeds say."] * 5
    said = [*wrong, *(one.answer for one in others)]
    assert score(said, questions) == [0] * 5 + [1] * 30
    assert find_keys(questions)[:5] == find_keys(QUESTIONS)


def test_a_question_whose_answer_is_all_in_it_is_scored_by_what_there_is():
    choice = [
        Question(
            id=str(n),
            prompt=f"Is it lead{n} or gold{n}?",
            answer=f"gold{n}",
            topic="t",
            kind="fact",
        )
        for n in range(6)
    ]
    assert score([one.answer for one in choice], choice) == [1] * 6
    assert score([f"lead{n}" for n in range(6)], choice) == [0] * 6
    polar = [
        Question(id=str(n), prompt=f"Is {n} even?", answer="yes", topic="t", kind="fact")
        for n in range(6)
    ]
    assert score(["yes"] * 6, polar) == [1] * 6
    assert score(["no"] * 6, polar) == [0] * 6
