"""The harness's own built-in rewards: as documented, and the engine's while that is right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.twin.rewards import find_built_in
from mudpuppy.methods import rewards as engine
from tests.harness.twin.runs import findings, run

EOS = frozenset({2})
PIECES = st.sampled_from(["<think>", "</think>", " ", "\n", "Yes", "yes", ".", "!", "’", "'", "ﬁ"])
TEXTS = st.lists(PIECES, max_size=7).map("".join)


def reward(name, text, ids=(), answer=""):
    return find_built_in(name, EOS)(
        completions=[text], completion_ids=[list(ids)], answer=[answer], prompts=["?"]
    )[0]


@pytest.mark.parametrize(
    ("name", "text", "ids", "earned"),
    [
        ("length", "word", [5] * 64, 0.5),
        ("length", "word", [5] * 192, 0.25),
        ("length", " \n", [5], 0.0),
        ("end", "word", [5, 2], 1.0),
        ("end", "word", [2, 5], 0.0),
        ("end", "", [], 0.0),
        ("format", "<think>so</think> yes", [5], 1.0),
        ("format", "<think></think> yes", [5], 0.0),
        ("format", "<think>so</think> ", [5], 0.0),
        ("format", "yes <think>so</think> yes", [5], 0.0),
        ("exact-match", " The  ANSWER. ", [5], 1.0),
        ("exact-match", "the other answer", [5], 0.0),
    ],
)
def test_built_in_rewards_are_as_documented(name, text, ids, earned):
    assert reward(name, text, ids, "the answer") == earned


@given(text=TEXTS, answer=TEXTS, ids=st.lists(st.integers(0, 3), max_size=5))
def test_the_engine_gives_the_same(text, answer, ids):
    given = {"exact-match": {"answer": [answer]}, "length": {}, "format": {}, "end": {}}
    for name, function in engine.built_in(EOS).items():
        words = {"completions": [text], "completion_ids": [ids]}
        words = {k: v for k, v in words.items() if k in function.__code__.co_varnames}
        theirs = function(**words, **given[name])
        assert theirs == pytest.approx([reward(name, text, ids, answer)])


def test_a_name_that_is_not_built_in_is_a_function():
    assert find_built_in("package.module:function", EOS) is None


def test_a_built_in_reward_that_is_upside_down_is_found(tmp_path, monkeypatch):
    def longer(completions, completion_ids):
        return [len(ids) / (64 + len(ids)) for ids in completion_ids]

    built_in = engine.built_in
    monkeypatch.setattr(engine, "built_in", lambda ids=(): {**built_in(ids), "length": longer})
    twin = run(tmp_path, "grpo", model="tiny", num_generations=4, max_completion_length=24)

    assert any("advantage" in one.what for one in twin.rewards)
    assert findings(twin)
