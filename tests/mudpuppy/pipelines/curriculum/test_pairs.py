"""Pairs from a voice profile: chosen keeps the voice, rejected says the same without it."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.agreement import token_f1
from mudpuppy.cli import main
from mudpuppy.data.read import read_dataset
from mudpuppy.errors import UsageError
from mudpuppy.pipelines.curriculum import stages
from mudpuppy.pipelines.curriculum.pairs import (
    LEAST_GAP,
    Exchange,
    ask_and_pair,
    make_pairs,
    pairs_of,
    read_exchanges,
    without_voice,
    write_rows,
)
from mudpuppy.pipelines.curriculum.plan import DEMO_FILE
from mudpuppy.scoring import load_voice_profile, score_voice

HOME = DEMO_FILE.parent
PROFILE = load_voice_profile(HOME / "voice.yaml")
ASK = ({"role": "user", "content": "What is the capital of Italy?"},)
VOICED = "Ahoy, the capital of Italy is Rome, says the tide."
PLAIN = "The capital of Italy is Rome."


def test_of_two_answers_the_one_with_the_voice_is_chosen():
    (row,) = make_pairs([Exchange(prompt=ASK, answers=(PLAIN, VOICED))], PROFILE)

    assert VOICED == row["chosen"][0]["content"]
    assert PLAIN == row["rejected"][0]["content"]


def test_of_one_answer_the_clauses_of_the_voice_are_taken_off():
    assert PLAIN == without_voice(VOICED, PROFILE)
    (row,) = make_pairs([Exchange(prompt=ASK, answers=(VOICED,))], PROFILE)

    assert PLAIN == row["rejected"][0]["content"]


def test_an_answer_without_the_voice_makes_no_pair():
    assert [] == make_pairs([Exchange(prompt=ASK, answers=(PLAIN,))], PROFILE)


def test_an_answer_that_is_all_voice_makes_no_pair():
    assert "" == without_voice("Ahoy, says the tide.", PROFILE)


def test_what_a_model_says_is_rejected_only_where_its_voice_is_worse():
    exchange = Exchange(prompt=ASK, answers=(VOICED, PLAIN))

    (row,) = make_pairs([exchange], PROFILE, said=["Rome, I think."])
    assert "Rome, I think." == row["rejected"][0]["content"]
    assert [] == make_pairs([exchange], PROFILE, said=["Ahoy, it is Rome, by the old anchor."])
    assert [] == make_pairs([exchange], PROFILE, said=[""])


WORDS = st.lists(
    st.sampled_from(["ahoy,", "rome", "the tide", "is", "old,", "anchor.", "well now,", "city;"]),
    min_size=1,
    max_size=10,
).map(" ".join)


@given(st.lists(WORDS, min_size=1, max_size=3, unique=True))
def test_whatever_the_answers_a_pair_has_a_gap_and_is_never_of_equal_answers(answers):
    for row in make_pairs([Exchange(prompt=ASK, answers=tuple(answers))], PROFILE):
        chosen, rejected = (row[key][0]["content"] for key in ("chosen", "rejected"))
        assert score_voice(chosen, PROFILE) - score_voice(rejected, PROFILE) >= LEAST_GAP
        assert chosen != rejected
        assert rejected.strip()


@given(WORDS)
def test_taking_the_voice_off_never_adds_any_and_keeps_words(text):
    plain = without_voice(text, PROFILE)

    if plain:
        assert token_f1(plain, text) >= 0.4
        words = set(plain.lower().replace(".", " ").replace(",", " ").replace(";", " ").split())
        assert words <= set(
            text.lower().replace(".", " ").replace(",", " ").replace(";", " ").split()
        )


def test_the_pairs_of_the_demo_are_learnable_and_the_same_every_time(tmp_path: Path):
    found = pairs_of(HOME / "south.jsonl", PROFILE)
    write_rows(tmp_path / "pairs.jsonl", found["rows"])

    assert found == pairs_of(HOME / "south.jsonl", PROFILE)
    assert found["samples"] == 24
    assert 8 <= len(found["rows"]) == len(read_dataset(tmp_path / "pairs.jsonl", "dpo").samples)


def test_the_command_writes_pairs_and_says_how_many(tmp_path: Path, capsys):
    output = tmp_path / "pairs.jsonl"
    words = [
        "curriculum",
        "pairs",
        str(HOME / "south.jsonl"),
        str(HOME / "voice.yaml"),
        str(output),
    ]

    assert 0 == main(words)
    told = capsys.readouterr().out
    assert f"{len(output.read_text().splitlines())} pairs of 24 questions" in told


def test_data_without_the_voice_are_refused_and_nothing_is_written(tmp_path: Path, capsys):
    data = tmp_path / "plain.jsonl"
    turns = [*ASK, {"role": "assistant", "content": PLAIN}]
    data.write_text(json.dumps({"messages": turns}) + "\n")
    output = tmp_path / "pairs.jsonl"

    assert 2 == main(["curriculum", "pairs", str(data), str(HOME / "voice.yaml"), str(output)])
    assert "no pair can be made" in capsys.readouterr().err
    assert not output.exists()


def test_running_text_makes_no_exchange(tmp_path: Path):
    (tmp_path / "text.jsonl").write_text('{"text": "once upon a time"}\n')

    with pytest.raises(UsageError, match="line 1"):
        read_exchanges(read_dataset(tmp_path / "text.jsonl").samples)


def write_turns(path: Path, *conversations: tuple[str, ...]) -> Path:
    """Write conversations of roles; the assistant keeps the voice."""
    words = {"system": "Be brief.", "user": "What is the capital of Italy?", "assistant": VOICED}
    rows = [
        {"messages": [{"role": role, "content": words[role]} for role in roles]}
        for roles in conversations
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_answer_without_a_question_is_named_by_its_line(tmp_path: Path):
    path = write_turns(tmp_path / "d.jsonl", ("user", "assistant"), ("assistant",))

    with pytest.raises(UsageError, match="line 2: there is an answer and no question"):
        pairs_of(path, PROFILE)


def test_a_model_is_asked_single_questions_and_no_last_turn_of_a_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []

    def answer(model: str, adapter: None, prompts: list[str]) -> list[tuple[str, bool]]:
        asked.extend(prompts)
        return [(PLAIN, True) for _ in prompts]

    monkeypatch.setattr(stages, "ask_model", answer)
    path = write_turns(
        tmp_path / "d.jsonl",
        ("user", "assistant"),
        ("system", "user", "assistant"),
        ("user", "assistant", "user", "assistant"),
    )
    found = ask_and_pair(path, PROFILE, "any")

    assert ["What is the capital of Italy?"] == asked
    assert (1, 3) == (len(found["rows"]), found["samples"])
