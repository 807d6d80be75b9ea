"""Evidence about answers: right or wrong by several measures, the voice, claims, by topic."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.facts.behaviour import Answers, BehaviourFacts, Scores
from harness.registry import Missing
from mudpuppy.agreement import find_keys, key_recall, token_f1
from mudpuppy.errors import UsageError
from mudpuppy.scoring import (
    Question,
    VoiceProfile,
    claims_forbidden,
    exact_match,
    load_quiz,
    load_voice_profile,
    score_voice,
)

MAX_PROMPTS = 64
"""Questions of a quiz that are asked, from the start."""
LEVELS = ("topic", "chapter", "unit")
"""By what questions are grouped; a quiz may leave the last two out."""


def judge_answers(
    name: str,
    prompts: tuple[str, ...],
    answers: Answers,
    control: Answers | None,
    questions: Sequence[Question],
    profile: VoiceProfile | None,
    max_new_tokens: int,
    embeddings: Path | None = None,
    **about: Any,
) -> BehaviourFacts:
    """Score answers, and those of the control, by the quiz and the voice profile.

    Args:
        name: of the checkpoint.
        prompts: what was asked.
        answers: the checkpoint's.
        control: the base's.
        questions: the quiz, in the order of the prompts; empty for none.
        profile: the voice.
        max_new_tokens: longest answer.
        embeddings: folder of a sentence-transformers model.
        about: further fields of the facts.

    Raises:
        Missing: `embeddings` cannot be used.
        ControlFailed: it tells unrelated answers not apart.
    """
    mine = _score(questions, profile, answers, embeddings)
    theirs = None if control is None else _score(questions, profile, control, embeddings)
    facts = [question for question in questions if question.kind == "fact"]
    return BehaviourFacts(
        subject=name,
        prompts=prompts,
        answers=answers,
        control=control,
        max_new_tokens=max_new_tokens,
        exact=mine.exact,
        control_exact=None if theirs is None else theirs.exact,
        voice=mine.voice,
        control_voice=None if theirs is None else theirs.voice,
        scores=mine,
        control_scores=theirs,
        fact_groups=_group(facts),
        groups=_group(questions),
        thresholds=dict(profile.thresholds) if profile is not None else {},
        **about,
    )


def _score(
    questions: Sequence[Question],
    profile: VoiceProfile | None,
    answers: Answers,
    embeddings: Path | None,
) -> Scores:
    pairs = list(zip(questions, answers.texts, strict=False))
    facts = [(question, text) for question, text in pairs if question.kind == "fact"]
    keys = find_keys([question for question, _ in facts])
    has_keys = bool(facts) and all(keys)
    return Scores(
        exact=tuple(exact_match(text, question.answer) for question, text in facts) or None,
        f1=tuple(token_f1(text, question.answer) for question, text in facts) or None,
        keys=tuple(key_recall(text, key) for (_, text), key in zip(facts, keys, strict=True))
        if has_keys
        else None,
        similarity=_compare_meaning(facts, embeddings),
        voice=None if profile is None else tuple(score_voice(t, profile) for t in answers.texts),
        claims=None
        if profile is None or not profile.forbidden
        else tuple(claims_forbidden(text, profile) for text in answers.texts),
    )


def _compare_meaning(
    facts: Sequence[tuple[Question, str]], embeddings: Path | None
) -> tuple[float, ...] | None:
    if embeddings is None or not facts:
        return None
    from harness.evidence.behaviour.similarity import measure_similarity

    golds = [question.answer for question, _ in facts]
    return measure_similarity(embeddings, [text for _, text in facts], golds)


def _group(questions: Sequence[Question]) -> Mapping[str, tuple[int, ...]]:
    """Return the places of the questions of each topic, chapter and unit, by `level name`."""
    found: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        for level in LEVELS:
            if name := getattr(question, level):
                found.setdefault(f"{level} {name[:80]}", []).append(place)
    return {name: tuple(places) for name, places in found.items()}


def to_json(facts: BehaviourFacts) -> dict[str, Any]:
    """Return the facts as plain JSON types."""
    value: dict[str, Any] = json.loads(json.dumps(asdict(facts), allow_nan=False))
    return value


def from_json(value: dict[str, Any]) -> BehaviourFacts:
    """Return the facts that `to_json` wrote.

    Raises:
        ValueError: the value is of another form.
    """
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(BehaviourFacts).validate_python(value)
    except (ValueError, TypeError) as problem:
        raise ValueError(f"not the behaviour of a checkpoint: {problem}") from problem


def read_quiz(path: Path | None) -> tuple[Question, ...]:
    """Return the questions that are asked; none without a quiz.

    Raises:
        Missing: it cannot be used.
    """
    if path is None:
        return ()
    try:
        return load_quiz(path)[:MAX_PROMPTS]
    except UsageError as problem:
        raise Missing(f"the quiz cannot be used: {problem.message}") from problem


def read_voice(path: Path | None) -> VoiceProfile | None:
    """Return the voice profile; None without one.

    Raises:
        Missing: it cannot be used.
    """
    if path is None:
        return None
    try:
        return load_voice_profile(path)
    except UsageError as problem:
        raise Missing(f"the voice profile cannot be used: {problem.message}") from problem
