"""How near answers are to the right ones, or to a voice, by a sentence-transformers model.

An optional measure (`--embeddings FOLDER`): nothing is downloaded. What unrelated answers of a quiz
have in common is taken off, so that 0 is chance and 1 the same, whatever the model. Of a voice 0
is what neutral texts have, and 1 what its own examples have.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mudpuppy.errors import EngineError, UsageError
from mudpuppy.scoring import MAX_TEXT_CHARS, Examples, VoiceProfile

ALIVE = 0.95
"""Mean cosine of unrelated answers from which on a model tells nothing apart."""
FEW = 3
"""Right answers below which chance cannot be measured."""
APART = 0.75
"""Share of the pairs of an example and a neutral text that a model must order rightly."""
LEAST_GAP = 0.02
"""Difference of cosines between both, on average, below which order is a matter of rounding."""
NEUTRAL = (
    "The office is open from nine to five on every working day.",
    "The report was finished in March and sent to all members.",
    "The capital of the country lies on a river in the south.",
    "There are three ways to solve this equation.",
    "The bridge was built in the nineteenth century.",
    "The answer to the question is yes.",
    "Press the green button and wait until the light goes out.",
    "The company sells furniture and tools in several cities.",
    "She studied chemistry before she became a teacher.",
    "This animal eats grass and lives in small groups.",
    "The price of the ticket includes a return journey.",
    "The second half of the film is longer than the first.",
)
"""Texts in no voice, where a profile brings none; of many subjects, so that none is a mark."""


def measure_similarity(
    folder: Path, answers: Sequence[str], golds: Sequence[str]
) -> tuple[float, ...]:
    """Return how near each answer is to its right one, 0 (as unrelated ones are) to 1 (the same).

    Raises:
        UsageError: sentence-transformers is not installed, or the folder holds no model of its
            that can be used.
        EngineError: the model tells unrelated answers not apart.
    """
    if len(golds) < FEW:
        raise UsageError(f"{len(golds)} right answers are too few to know what chance is")
    said, right = _embed(folder, answers, golds)
    alike = right @ right.T
    count = len(golds)
    chance = float((alike.sum() - alike.trace()) / (count * (count - 1)))
    if chance >= ALIVE:
        raise EngineError(f"{folder.name} finds unrelated answers {chance:.2f} alike")
    near = ((said * right).sum(axis=1) - chance) / (1 - chance)
    return tuple(
        min(1.0, max(0.0, float(value))) if text.strip() else 0.0
        for value, text in zip(near, answers, strict=True)
    )


def measure_voice(folder: Path, texts: Sequence[str], voice: Examples) -> tuple[float, ...]:
    """Return how near each text is to a voice, 0 (as neutral ones are) to 1 (as its examples are).

    A text's place is its cosine to the middle of the examples less that to the middle of the
    neutral texts. What an example and a neutral text have by it is measured with that text left
    out of its middle, as no text that is judged is in one.

    Raises:
        UsageError: sentence-transformers is not installed, or the folder holds no model of its
            that can be used.
        EngineError: the model tells the examples not from the neutral texts.
    """
    neutral = voice.neutral or NEUTRAL
    searched = [text.strip()[:MAX_TEXT_CHARS] for text in texts]
    said, ours, others = _embed(folder, searched, voice.texts, neutral)
    own = _left_out(ours, ours) - _left_out(ours, others, among=False)
    plain = _left_out(others, ours, among=False) - _left_out(others, others)
    bottom, top = float(plain.mean()), float(own.mean())
    ordered = float((own[:, None] > plain[None, :]).mean())
    if top - bottom < LEAST_GAP or ordered < APART:
        raise EngineError(
            f"{folder.name} tells the examples of the voice not from neutral texts: "
            f"{ordered:.0%} of the pairs are in order, and they lie {top - bottom:.2f} apart"
        )
    places = _left_out(said, ours, among=False) - _left_out(said, others, among=False)
    return tuple(
        min(1.0, max(0.0, (float(place) - bottom) / (top - bottom))) if text else 0.0
        for place, text in zip(places, searched, strict=True)
    )


def try_voice(
    folder: Path | None, texts: Sequence[str], profile: VoiceProfile | None
) -> tuple[tuple[float, ...] | None, str]:
    """Return how near texts are to the examples of a profile, or why these do not count.

    Without examples there is nothing to measure, and no reason to tell.
    """
    if profile is None or profile.similarity is None:
        return None, ""
    if folder is None:
        return None, "its examples need a model: --embeddings FOLDER"
    try:
        return measure_voice(folder, texts, profile.similarity), ""
    except (UsageError, EngineError) as problem:
        return None, problem.message


def _left_out(rows: Any, group: Any, *, among: bool = True) -> Any:
    """Return the cosine of each row to the middle of a group, less itself where it is among it.

    Args:
        rows: unit vectors, (count, width).
        group: unit vectors, (members, width); `rows` themselves where they are among it.
        among: whether they are.
    """
    middles = group.sum(axis=0)[None, :] - (rows if among else 0 * rows)
    lengths = (middles * middles).sum(axis=1) ** 0.5
    return (rows * middles).sum(axis=1) / lengths.clip(min=1e-12)


def _embed(folder: Path, *groups: Sequence[str]) -> tuple[Any, ...]:
    """Return the unit vectors of groups of texts, each (texts, width) in float64."""
    model = _load(folder)
    try:
        return tuple(
            model.encode(list(texts), normalize_embeddings=True).astype("float64")
            for texts in groups
        )
    except Exception as problem:  # whatever the parts of the model raise
        raise UsageError(f"{folder} reads no text: {problem}") from problem


@cache
def _load(folder: Path) -> Any:
    """Load the model, which the person at the keyboard vouches for, without code of its folder."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as problem:
        raise UsageError(
            "--embeddings needs sentence-transformers: pip install 'mudpuppy[embeddings]'"
        ) from problem
    try:
        return SentenceTransformer(
            str(folder), device="cpu", trust_remote_code=False, local_files_only=True
        )
    except Exception as problem:  # each part of a model has errors of its own
        raise UsageError(f"{folder} is no model of sentence-transformers: {problem}") from problem
