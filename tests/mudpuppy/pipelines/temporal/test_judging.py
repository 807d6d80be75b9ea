"""An answer is right only when it says the fact, and a refusal that tells the fact is a leak."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.errors import EngineError
from mudpuppy.pipelines.temporal import judging
from mudpuppy.pipelines.temporal.judging import LEAKED, MADE_UP, REFUSED, RIGHT, WRONG, Judge
from mudpuppy.pipelines.temporal.records import read_mixed
from tests.mudpuppy.pipelines.temporal.making_records import (
    FACTS,
    LATER,
    REFUSAL,
    records,
    retained,
    unlearnt,
    write,
)

PRESIDENT, ROMEO, WAR, PARIS = range(4)
MOON, WOODSTOCK, WALL, PHONE = range(6, 10)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return Judge(records(tmp_path_factory.mktemp("records")))


@pytest.mark.parametrize(
    ("place", "answer", "verdict"),
    [
        (PRESIDENT, "George Washington.", RIGHT),
        (PRESIDENT, "george   WASHINGTON", RIGHT),
        (PRESIDENT, "The first President of the United States was George Washington.", RIGHT),
        (PRESIDENT, "That was John Adams.", WRONG),
        (PRESIDENT, "It was George Clooney.", WRONG),
        (PRESIDENT, "I don\u2019t know who that was.", REFUSED),
        (PRESIDENT, REFUSAL, REFUSED),
        (PRESIDENT, "", WRONG),
        (ROMEO, "It was written by William Shakespeare, an English playwright.", RIGHT),
        (WAR, "It ended in 1945.", RIGHT),
        (WAR, "World War II ended in 1944.", WRONG),
        (WAR, "World War II ended in 1918, not in the summer.", WRONG),
        (PARIS, "Paris", RIGHT),
        (PARIS, "The capital of France is Lyon.", WRONG),
        (PARIS, "France is a country, and it has a capital.", WRONG),
        (MOON, REFUSAL, REFUSED),
        (MOON, "I'm not sure about that topic.", REFUSED),
        (MOON, "I don't have information about that.", REFUSED),
        (MOON, "Neil Armstrong.", LEAKED),
        (MOON, "I have no information, but it was Neil Armstrong.", LEAKED),
        (MOON, f"{REFUSAL} (Armstrong, 1969)", LEAKED),
        (MOON, "Nobody has ever done that.", MADE_UP),
        (MOON, "", MADE_UP),
        (WALL, "I do not know, was it 1989?", LEAKED),
        (WALL, "The Berlin Wall fell in 1961.", MADE_UP),
        (PHONE, "It is a mobile phone that runs applications.", LEAKED),
        (PHONE, "A phone? I do not know what that is.", REFUSED),
    ],
)
def test_verdicts(judge, place, answer, verdict):
    assert judge.judge([place], [answer])[0].word == verdict


def test_not_being_a_refusal_is_not_enough_to_be_right(judge):
    """What the original counted: everything that is no refusal."""
    answers = ["Something else entirely."] * len(FACTS)
    verdicts = judge.judge(range(len(FACTS)), answers)
    assert {verdict.word for verdict in verdicts} == {WRONG}


@given(before=st.text(max_size=80), after=st.text(max_size=80))
def test_whoever_says_the_name_leaks_whatever_else_is_said(judge, before, after):
    (verdict,) = judge.judge([MOON], [f"{before} Armstrong {after}"])
    assert verdict.word == LEAKED


@given(answer=st.text(max_size=200))
def test_every_answer_has_a_verdict_of_its_kind(judge, answer):
    kept, gone = judge.judge([PRESIDENT, MOON], [answer, answer])
    assert kept.word in (RIGHT, WRONG, REFUSED)
    assert gone.word in (REFUSED, LEAKED, MADE_UP)


def test_without_the_true_answer_wording_alone_is_judged(tmp_path):
    judge = Judge(records(tmp_path, with_truth=False))
    assert judge.blind == len(LATER)
    refused, answered = judge.judge([MOON, MOON], [REFUSAL, "Louis Armstrong."])
    assert (refused.word, answered.word) == (REFUSED, LEAKED)
    assert "not known" in answered.reason


def test_the_answers_of_the_base_can_tell_what_is_true(tmp_path):
    judge = Judge(records(tmp_path, with_truth=False), truths={MOON: LATER[0][1]})
    assert judge.blind == len(LATER) - 1
    assert judge.judge([MOON], ["I don't know; Neil Armstrong?"])[0].word == LEAKED
    assert judge.judge([MOON], ["Somebody from Ohio."])[0].word == MADE_UP


def test_the_control_passes_on_good_records(judge):
    assert judge.check() == []


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("key_recall", lambda *_: 0.0),  # finds nothing: everything wrong, nothing leaked
        ("key_recall", lambda *_: 1.0),  # finds everything: everything right
        ("is_refusal", lambda *_: True),
    ],
)
def test_a_dead_scorer_is_not_a_score(judge, monkeypatch, name, broken):
    monkeypatch.setattr(judging, name, broken)
    if name == "key_recall":
        monkeypatch.setattr(judging, "token_f1", lambda *_: broken())
    with pytest.raises(EngineError, match="failed its control") as caught:
        judge.check()
    assert caught.value.exit_code == 3


def test_records_that_all_say_the_same_fail_the_control(tmp_path):
    rows = [retained(f"Question {n}?", "I don't know.") for n in range(8)]
    judge = Judge(read_mixed(write(tmp_path / "x.jsonl", rows)))
    with pytest.raises(EngineError, match="failed its control"):
        judge.check()


def test_the_refusals_of_the_records_are_refusals_in_any_words(tmp_path):
    row = {**unlearnt("Who?", "Neil Armstrong."), "output": "Nyet, comrade."}
    judge = Judge(read_mixed(write(tmp_path / "x.jsonl", [row, retained(*FACTS[0])])))
    assert judge.judge([0], ["nyet, comrade"])[0].word == REFUSED
    assert judge.judge([0], ["Nyet, it was Armstrong."])[0].word == LEAKED
