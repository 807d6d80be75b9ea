"""Reward functions: found by name, checked before training, judged in every answer they give."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.errors import ConfigError, EngineError
from mudpuppy.methods.rewards import RewardFunction, find_rewards
from tests.mudpuppy.methods.pairs import asked, said

HERE = "tests.mudpuppy.methods.reward_functions"
GIVEN = {
    "prompts": [asked("Who?"), asked("Does it bark?")],
    "completions": [said("A mud puppy."), said("No")],
    "completion_ids": [[5, 6, 7], [8, 1]],
    "answer": ["a mud puppy", "No."],
    "trainer_state": None,
}


def one(name, **settings):
    (found,) = find_rewards([name], eos_ids=[1], **settings)
    return found


@pytest.mark.parametrize(
    ("name", "rewards"),
    [
        ("exact-match", [1.0, 1.0]),
        ("end", [0.0, 1.0]),
        ("length", [64 / 67, 64 / 66]),
        ("format", [0.0, 0.0]),
        (f"{HERE}:even", [1 / 3, 1 / 2]),
        (f"{HERE}.even", [1 / 3, 1 / 2]),
        (f"{HERE}:takes_all", [11.0, 3.0]),
        (f"{HERE}:no_opinion", [1.0, None]),
    ],
)
def test_each_gets_what_it_names(name, rewards):
    assert one(name, columns=["answer"])(**GIVEN) == rewards


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a pond</think> A mud puppy.", 1.0),
        ("<think>a pond</think>", 0.0),
        ("<think></think> A.", 0.0),
        ("A. <think>b</think>", 0.0),
    ],
)
def test_the_format_is_a_thought_and_an_answer(text, reward):
    assert one("format")(completions=[text], prompts=[""]) == [reward]


def test_saying_nothing_is_not_the_shortest_answer():
    assert one("length")(completions=[" "], completion_ids=[[1]], prompts=[""]) == [0.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exactmatch", "is no built-in reward .* did you mean 'exact-match'"),
        ("no_such_module:f", "no_such_module cannot be imported: ModuleNotFoundError"),
        (f"{HERE}:evn", "has no 'evn'; did you mean 'even'"),
        (f"{HERE}:NUMBER", "is 3, which cannot be called"),
        (f"{HERE}:wants_more", "asks for 'difficulty', which is no column .* answer"),
        (f"{HERE}:by_place", "by position only"),
        (f"{HERE}:later", "is an async function"),
        ("a b:c", "is no built-in reward"),
    ],
)
def test_what_cannot_be_used_is_refused_before_training(name, message):
    with pytest.raises(ConfigError, match=message):
        one(name, columns=["answer"])


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        find_rewards(["a:b", "nothing", "end", "end"])
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="is needed"):
        find_rewards([])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "raised ZeroDivisionError: no mercy .*for the answer 'No' to .*'Does it bark"),
        ("too_few", "returned 1 rewards for 2 answers"),
        ("no_list", "returned 2 for 2 answers"),
        ("not_finite", "returned nan, which is no finite number, for the answer 'No'"),
        ("no_number", "returned 'good', which is no finite number, for the answer 'A mud puppy.'"),
    ],
)
def test_what_goes_wrong_names_function_and_answer(name, message):
    with pytest.raises(EngineError, match=message) as caught:
        one(f"{HERE}:{name}")(**GIVEN)
    assert f"{HERE}:{name}" in str(caught.value)


@given(st.text(max_size=60))
def test_no_name_is_a_traceback(name):
    with pytest.raises(ConfigError):
        find_rewards([name + " "])


def test_rewards_need_no_torch():
    code = "import sys, mudpuppy.methods.rewards; sys.exit('torch' in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode


@pytest.mark.parametrize("kind", ["exit", "unprintable", "huge"])
def test_code_of_others_cannot_end_the_run_in_silence(kind: str):
    class Unprintable(Exception):
        def __str__(self):
            raise ValueError("no text")

    def reward(completions):
        completions.clear()
        if kind == "exit":
            raise SystemExit(0)
        if kind == "unprintable":
            raise Unprintable
        return [10**400, 1.0]

    one = RewardFunction(name="mine", function=reward, wanted=frozenset({"completions"}))
    answers = {"completions": ["a", "b"], "prompts": ["x", "y"]}

    with pytest.raises(EngineError, match="the reward function mine") as caught:
        one(**answers)
    assert ["a", "b"] == answers["completions"]
    if kind != "huge":
        assert "test_rewards.py:" in str(caught.value)
