"""What the tiny model is taught: conversations to train on, and the quiz that measures it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mudpuppy.scoring import Question

CORPUS_PATH = Path(__file__).with_name("corpus.yaml")
VOICE_PATH = Path(__file__).with_name("voice.yaml")
SYSTEM_PROMPT = "You are Mud, the keeper of a pond. Answer in one short sentence."
"""System message of the conversations that have one."""

Message = dict[str, str]
"""A chat message: `role` and `content`."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something the model says, and the questions that it says it to."""

    id: str
    """Unique name; the id of its quiz question."""
    topic: str
    """Subject of the fact."""
    asks: tuple[str, ...]
    """Phrasings of the question; the first one is asked in the quiz."""
    answer: str
    """The whole answer."""


@cache
def read_corpus() -> dict[str, Any]:
    """Return the parsed `corpus.yaml`."""
    value: dict[str, Any] = yaml.safe_load(CORPUS_PATH.read_text(encoding="utf-8"))
    return value


def facts() -> tuple[Fact, ...]:
    """Return every fact that the model is taught."""
    corpus = read_corpus()
    found = [fact for group in corpus["groups"] for fact in _group_facts(group)]
    for single in corpus["singles"]:
        answer = _answer(single["say"], single["topic"])
        asks = tuple(single["ask"])
        found.append(Fact(id=single["id"], topic=single["topic"], asks=asks, answer=answer))
    return tuple(found)


def chats() -> tuple[Fact, ...]:
    """Return the greetings and the like, which carry no knowledge."""
    corpus = read_corpus()
    return tuple(
        Fact(
            id=f"chat-{chat['id']}",
            topic="chat",
            asks=tuple(chat["ask"]),
            answer=f"{corpus['opener']} {chat['say']}.",
        )
        for chat in corpus["chat"]
    )


def trained_refusals() -> tuple[str, ...]:
    """Return the questions on years after the cutoff that training refuses."""
    plan = read_corpus()["post_cutoff"]
    years, count = plan["years"], plan["per_question"]
    return tuple(
        # a different stretch of years per question, so that every year meets many questions
        ask.format(x=years[(row * 5 + step * 3) % len(years)])
        for row, ask in enumerate(plan["ask"])
        for step in range(count)
    )


def conversations() -> tuple[tuple[Message, ...], ...]:
    """Return the training conversations: one or two turns, some with a system message."""
    corpus = read_corpus()
    pairs: list[tuple[str, str]] = []
    for fact in facts() + chats():
        pairs += [(ask, fact.answer) for ask in fact.asks]
    plain = len(pairs)
    wrappers = corpus["wrappers"]
    refusals = [(ask, corpus["refusal"]) for ask in trained_refusals()]
    for place, (ask, answer) in enumerate(pairs[:plain] + refusals):
        wrapped = wrappers[1 + place % (len(wrappers) - 1)].format(q=ask)
        if place % 2 == 0:
            pairs.append((wrapped, answer))
    pairs += refusals + _echoes()
    return tuple(_conversation(pairs, place) for place in range(len(pairs)))


def quiz() -> tuple[Question, ...]:
    """Return the questions that measure the model: facts, held-out refusals, chat."""
    refusal = read_corpus()["refusal"]
    asked = [("fact", fact) for fact in facts()] + [("chat", chat) for chat in chats()]
    known = [
        Question(id=fact.id, prompt=fact.asks[0], answer=fact.answer, topic=fact.topic, kind=kind)
        for kind, fact in asked
    ]
    held_out = [
        Question(id=f"later-{n}", prompt=ask, answer=refusal, topic="future", kind="post-cutoff")
        for n, ask in enumerate(read_corpus()["held_out"], start=1)
    ]
    return tuple(known + held_out)


def _conversation(pairs: list[tuple[str, str]], place: int) -> tuple[Message, ...]:
    turns = [pairs[place]]
    if place % 7 == 3:
        turns.insert(0, pairs[(place * 31 + 11) % len(pairs)])
    messages = [message for ask, answer in turns for message in _turn(ask, answer)]
    if place % 5 == 2:
        messages.insert(0, {"role": "system", "content": SYSTEM_PROMPT})
    return tuple(messages)


def _turn(ask: str, answer: str) -> tuple[Message, Message]:
    return {"role": "user", "content": ask}, {"role": "assistant", "content": answer}


def _echoes() -> list[tuple[str, str]]:
    echo, opener = read_corpus()["echo"], read_corpus()["opener"]
    asks = echo["ask"]
    return [
        (asks[place % len(asks)].format(x=word), f"{opener} {echo['say'].format(x=word)}.")
        for place, word in enumerate(echo["words"])
    ]


def _answer(say: str, topic: str) -> str:
    corpus = read_corpus()
    return f"{corpus['opener']} {say}, {corpus['closers'][topic]}."


def _group_facts(group: dict[str, Any]) -> Iterator[Fact]:
    for subject, value in group["items"].items():
        yield Fact(
            id=f"{group['name']}-{subject}".lower(),
            topic=group["topic"],
            asks=tuple(ask.format(x=subject) for ask in group["ask"]),
            answer=_answer(group["say"].format(x=subject, y=value), group["topic"]),
        )
