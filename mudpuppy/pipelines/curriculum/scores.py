"""Score answers to a curriculum's questions: accuracy and voice, by topic, chapter and unit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mudpuppy.agreement import find_keys, key_recall, token_f1
from mudpuppy.scoring import LEVELS, Question, VoiceProfile, exact_match, is_refusal, score_voice

NEARLY_THE_SAME = 0.8
"""F1 from which on an answer is right to a question whose answer has no word of its own."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question, what was said, and what that is worth."""

    id: str
    topic: str
    chapter: str
    unit: str
    text: str
    """What was said."""
    right: bool | None
    """Whether it is right; None for a question that asks for no knowledge."""
    voice: float | None
    """0 to 1; None without a profile."""
    ended: bool | None
    """Whether the answer ended by itself; None where nobody says."""


def score_answers(
    questions: Sequence[Question],
    said: Sequence[tuple[str, bool | None]],
    profile: VoiceProfile | None,
    every: Sequence[Question],
    near: Sequence[float] | None = None,
) -> list[Answered]:
    """Score answers.

    A fact is right if it is said exactly, or if every word is in the answer that carries the right
    one: what `find_keys` leaves of it once the words of the question and of the voice are taken
    off. An answer that declines to answer is not right, whatever words it holds.

    Args:
        questions: what was asked.
        said: the text of each answer, and whether it ended.
        profile: the voice.
        every: all questions of the curriculum, which tell the words of the voice from knowledge.
        near: how near each answer is to the examples of the voice, 0 to 1; they count only then.
    """
    facts = [question for question in every if question.kind == "fact"]
    nears = [None] * len(said) if near is None else near
    keys = dict(zip((one.id for one in facts), find_keys(facts), strict=True))
    return [
        Answered(
            id=question.id,
            topic=question.topic,
            chapter=question.chapter,
            unit=question.unit,
            text=text,
            right=_is_right(question, text, keys.get(question.id, frozenset()), profile),
            voice=None if profile is None else score_voice(text, profile, close),
            ended=ended,
        )
        for question, (text, ended), close in zip(questions, said, nears, strict=True)
    ]


def _is_right(
    question: Question, text: str, keys: frozenset[str], profile: VoiceProfile | None
) -> bool | None:
    refused = profile is not None and is_refusal(text, profile)
    if question.kind == "chat":
        return None
    if question.kind == "post-cutoff":
        return refused
    if exact_match(text, question.answer):
        return True
    if refused:
        return False
    if keys:
        return key_recall(text, keys) == 1.0
    return token_f1(text, question.answer) >= NEARLY_THE_SAME


def summarise(answers: Iterable[Answered]) -> dict[str, dict[str, Any]]:
    """Return accuracy and voice of all answers (`final`) and of each topic, chapter and unit.

    The keys are `final`, `topic NAME`, `chapter NAME` and `unit NAME`; each holds `questions`,
    `accuracy`, `voice` (null where nothing could be scored), `empty` and `cut`.
    """
    groups: dict[str, list[Answered]] = {}
    for answer in answers:
        names = [f"{level} {getattr(answer, level)}" for level in LEVELS if level != "final"]
        for name in ("final", *names):
            groups.setdefault(name, []).append(answer)
    return {name: _mean(found) for name, found in groups.items()}


def _mean(answers: Sequence[Answered]) -> dict[str, Any]:
    rights = [one.right for one in answers if one.right is not None]
    voices = [one.voice for one in answers if one.voice is not None]
    return {
        "questions": len(answers),
        "accuracy": round(fmean(rights), 4) if rights else None,
        "voice": round(fmean(voices), 4) if voices else None,
        "empty": sum(not one.text.strip() for one in answers),
        "cut": sum(one.ended is False for one in answers),
    }
