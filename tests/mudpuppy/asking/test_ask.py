"""Prompts are asked once each; what was kept is not asked again, whatever happened in between."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mudpuppy.asking import Answer, ask
from mudpuppy.asking.kept import Kept, key_of, open_kept
from mudpuppy.errors import MudpuppyError, UsageError

PROMPTS = ("one", "two", "three", "two")


class Parrot:
    """Says what it hears, and fails when it has said enough."""

    def __init__(self, *, breaks_after=None, **identity):
        self.name, self.identity = "parrot", {"kind": "parrot", **identity}
        self.heard, self.breaks_after = [], breaks_after

    def answer(self, prompts, *, max_tokens, on_answer=None):
        found = []
        for number in reversed(range(len(prompts))):
            if len(self.heard) == self.breaks_after:
                raise MudpuppyError("it flew away", hint="wait")
            self.heard.append(prompts[number])
            made = Answer(text=prompts[number][:max_tokens], ended=True, tokens=1, seconds=0.5)
            found.insert(0, made)
            on_answer(number, made)
        return found


def test_answers_come_in_the_order_of_the_prompts_and_each_is_asked_once():
    parrot, told = Parrot(), []
    answers = ask(parrot, PROMPTS, max_tokens=9, on_answer=lambda n, a: told.append((n, a.text)))
    assert [one.text for one in answers] == list(PROMPTS)
    assert sorted(parrot.heard) == ["one", "three", "two"]
    assert sorted(told) == list(enumerate(PROMPTS))


def test_an_evaluation_that_broke_off_goes_on_where_it_stopped(tmp_path):
    keep = tmp_path / "deep" / "answers.jsonl"
    broken = Parrot(breaks_after=2)
    with pytest.raises(MudpuppyError) as caught:
        ask(broken, PROMPTS, max_tokens=9, keep=keep)
    assert caught.value.hint == (
        f"wait; 2 of 3 answers are kept in {keep}: the same command goes on from there"
    )
    again, told = Parrot(), []
    answers = ask(again, PROMPTS, max_tokens=9, keep=keep, on_answer=lambda n, a: told.append(n))
    assert [one.text for one in answers] == list(PROMPTS)
    assert not set(again.heard) & set(broken.heard)
    assert sorted(told) == [0, 1, 2, 3]
    last = Parrot()
    assert ask(last, PROMPTS, max_tokens=9, keep=keep) == answers
    assert not last.heard


def test_another_model_question_or_length_is_another_answer(tmp_path):
    keep = tmp_path / "answers.jsonl"
    ask(Parrot(), PROMPTS, max_tokens=9, keep=keep)
    for parrot, length in ((Parrot(system="be brief"), 9), (Parrot(), 2)):
        ask(parrot, PROMPTS, max_tokens=length, keep=keep)
        assert len(parrot.heard) == 3
    more = Parrot()
    ask(more, [*PROMPTS, "four"], max_tokens=9, keep=keep)
    assert more.heard == ["four"]


@settings(max_examples=25)
@given(st.data())
def test_half_a_line_at_the_end_costs_that_line_alone(tmp_path_factory, data):
    keep = tmp_path_factory.mktemp("kept") / "answers.jsonl"
    ask(Parrot(), PROMPTS, max_tokens=9, keep=keep)
    raw = keep.read_bytes()
    cut = data.draw(st.integers(0, len(raw)))
    keep.write_bytes(raw[:cut])
    again = Parrot()
    ask(again, PROMPTS, max_tokens=9, keep=keep)
    assert len(again.heard) == 3 - raw[:cut].count(b"\n")
    assert len(keep.read_bytes().splitlines()) == 3


def test_nothing_is_left_of_a_long_half_line(tmp_path):
    keep = tmp_path / "answers.jsonl"
    keep.write_text('{"version": 1, "key": "' + "x" * 5000)
    ask(Parrot(), PROMPTS, max_tokens=9, keep=keep)
    assert "xxx" not in keep.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no json\n", "answers.jsonl:1: this is no kept answer"),
        ('{"version": 1, "key": "a"}\n', "answers.jsonl:1: this is no kept answer: 'text'"),
        ('{"version": 2, "key": "a"}\n', "version 2, not 1"),
        ("[" * 100_000 + "\n", "answers.jsonl:1"),
        ("some other file", "something else than answers"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, text, said):
    keep = tmp_path / "answers.jsonl"
    keep.write_text(text)
    with pytest.raises(UsageError, match=said):
        ask(Parrot(), PROMPTS, max_tokens=9, keep=keep)
    assert keep.read_text() == text


def test_a_folder_or_a_file_that_somebody_writes_to_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be kept there"):
        ask(Parrot(), PROMPTS, max_tokens=9, keep=tmp_path)
    keep = tmp_path / "answers.jsonl"
    with open_kept(keep), pytest.raises(UsageError, match="another process keeps"):
        ask(Parrot(), PROMPTS, max_tokens=9, keep=keep)


def test_a_full_disk_is_told_and_what_was_kept_stays(tmp_path):
    with Path("/dev/full").open("r+b", buffering=0) as full:
        kept = Kept.__new__(Kept)
        kept.path, kept._handle, kept._answers = Path("answers.jsonl"), full, {}
        answer = Answer(text="a", ended=True, tokens=1, seconds=0.0)
        with pytest.raises(MudpuppyError, match="cannot be kept: No space left"):
            kept.add("key", "one", answer)
    assert not len(kept)


@given(text=st.text(), ended=st.sampled_from([True, False, None]), seconds=st.floats(0, 1e9))
def test_every_answer_comes_back_as_it_was(tmp_path_factory, text, ended, seconds):
    keep = tmp_path_factory.mktemp("kept") / "answers.jsonl"
    answer = Answer(text=text, ended=ended, tokens=None, seconds=seconds)
    with open_kept(keep) as kept:
        kept.add("key", text, answer)
    with open_kept(keep) as kept:
        assert kept.get("key") == answer


def test_keys_depend_on_everything():
    same = key_of({"a": "1", "b": "2"}, "q", 5)
    assert same == key_of({"b": "2", "a": "1"}, "q", 5)
    others = [key_of({"a": "1"}, "q", 5), key_of({"a": "1", "b": "2"}, "r", 5)]
    assert len({same, *others, key_of({"a": "1", "b": "2"}, "q", 6)}) == 4


KILLED = """
import sys, time
from pathlib import Path
from mudpuppy.asking import Answer, ask

class Slow:
    name, identity = "slow", {}
    def answer(self, prompts, *, max_tokens, on_answer=None):
        for number, prompt in enumerate(prompts):
            on_answer(number, Answer(text=prompt, ended=True, tokens=1, seconds=0.0))
            print(number, flush=True)
            time.sleep(30 if number == 2 else 0)

ask(Slow(), [str(n) for n in range(9)], max_tokens=5, keep=Path(sys.argv[1]))
"""


def test_what_was_answered_before_a_kill_is_kept(tmp_path):
    keep = tmp_path / "answers.jsonl"
    command = [sys.executable, "-c", KILLED, str(keep)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(3):
            process.stdout.readline()
        process.kill()
    kept = [json.loads(line)["text"] for line in keep.read_text().splitlines()]
    assert kept == ["0", "1", "2"]


def test_answers_of_another_model_behind_the_same_address_are_not_taken(tmp_path):
    keep = tmp_path / "answers.jsonl"

    class Served(Parrot):
        is_recognised = False

        def answer(self, prompts, *, max_tokens, on_answer=lambda number, answer: None):
            return super().answer(prompts, max_tokens=max_tokens, on_answer=on_answer)

    class Other(Served):
        def answer(self, prompts, *, max_tokens, on_answer=lambda number, answer: None):
            prompts = [one.upper() for one in prompts]
            return super().answer(prompts, max_tokens=max_tokens, on_answer=on_answer)

    first = ask(Served(), PROMPTS, max_tokens=9, keep=keep)
    again = Served()
    assert ask(again, PROMPTS, max_tokens=9, keep=keep) == first
    assert sorted(again.heard) == ["one", "three", "two"]
    with pytest.raises(UsageError, match="another model than parrot is now: it answers 'one'"):
        ask(Other(), PROMPTS, max_tokens=9, keep=keep)


def test_a_model_in_memory_without_a_name_of_its_own_takes_nobodys_answers():
    from mudpuppy.asking.local import LocalAnswerer

    model = object()
    made = [LocalAnswerer(model, None, name="x").identity for _ in range(2)]
    assert made[0] != made[1]
