"""Evidence about answers: right or wrong by several measures, the voice, claims, by topic."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.facts.behaviour import Answers, BehaviourFacts, Scores
from harness.registry import ControlFailed, Missing
from mudpuppy.agreement import find_idle, find_keys, key_recall, token_f1
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
from mudpuppy.similarity import try_voice

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
    """
    places = [n for n, question in enumerate(questions) if question.kind == "fact"]
    facts = [questions[n] for n in places]
    both = [answers] if control is None else [answers, control]
    idle = find_idle(facts, *([one.texts[n] for n in places] for one in both))
    scores = [
        _score(facts, idle, [one.texts[n] for n in places], one.texts, profile, embeddings)
        for one in both
    ]
    mine, theirs = scores[0], None if control is None else scores[1]
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
    facts: Sequence[Question],
    idle: Sequence[frozenset[str]],
    said: Sequence[str],
    texts: Sequence[str],
    profile: VoiceProfile | None,
    embeddings: Path | None,
) -> Scores:
    """Score what was said to the facts of a quiz, and the voice of all texts."""
    keys = find_keys(facts)
    has_keys = bool(facts) and all(keys)
    golds = [question.answer for question in facts]
    similarity, unlike = _compare_meaning(golds, said, embeddings)
    near, why_markers_alone = try_voice(embeddings, texts, profile)
    nears = near or [None] * len(texts)
    return Scores(
        exact=tuple(map(exact_match, said, golds)) or None,
        f1=tuple(map(token_f1, said, golds, idle)) or None,
        keys=tuple(map(key_recall, said, keys)) if has_keys else None,
        similarity=similarity,
        why_no_similarity=unlike,
        voice=None
        if profile is None
        else tuple(score_voice(t, profile, n) for t, n in zip(texts, nears, strict=True)),
        why_markers_alone=why_markers_alone,
        claims=None
        if profile is None or not profile.forbidden
        else tuple(claims_forbidden(text, profile) for text in texts),
    )


def _compare_meaning(
    golds: Sequence[str], said: Sequence[str], embeddings: Path | None
) -> tuple[tuple[float, ...] | None, str]:
    """Return the nearness in meaning, or why it was wanted and could not be had."""
    if embeddings is None or not golds:
        return None, ""
    from harness.evidence.behaviour.similarity import measure_similarity

    try:
        return measure_similarity(embeddings, said, golds), ""
    except (ControlFailed, Missing) as failure:
        return None, str(failure)


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
