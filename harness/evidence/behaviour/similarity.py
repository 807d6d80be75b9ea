"""Evidence about how near answers are to the right ones in meaning, by a model of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.registry import ControlFailed, Missing
from mudpuppy import similarity
from mudpuppy.errors import EngineError, UsageError


def measure_similarity(
    folder: Path, answers: Sequence[str], golds: Sequence[str]
) -> tuple[float, ...]:
    """Return how near each answer is to its right one, 0 (as unrelated ones are) to 1 (the same).

    Raises:
        Missing: sentence-transformers is not installed, or the folder holds no model of its
            that can be used.
        ControlFailed: the model tells unrelated answers not apart.
    """
    try:
        return similarity.measure_similarity(folder, answers, golds)
    except UsageError as problem:
        raise Missing(problem.message) from problem
    except EngineError as problem:
        raise ControlFailed(problem.message) from problem
