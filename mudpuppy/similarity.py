"""How near answers are to the right ones in meaning, by a sentence-transformers model of one's own.

An optional measure (`--embeddings FOLDER`): nothing is downloaded. What two unrelated answers of
the quiz have in common is taken off, so that 0 is chance and 1 the same, whatever the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mudpuppy.errors import EngineError, UsageError

ALIVE = 0.95
"""Mean cosine of unrelated answers from which on a model tells nothing apart."""
FEW = 3
"""Right answers below which chance cannot be measured."""


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
    model = _load(folder)
    try:
        said, right = (
            model.encode(list(texts), normalize_embeddings=True) for texts in (answers, golds)
        )
    except Exception as problem:  # whatever the parts of the model raise
        raise UsageError(f"{folder} reads no text: {problem}") from problem
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
