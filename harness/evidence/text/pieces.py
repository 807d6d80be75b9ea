"""The vocabulary of a sentencepiece model, for evidence: what cannot be read is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.registry import Missing
from mudpuppy import sentencepiece_file


def read_pieces(path: Path) -> Iterator[tuple[str, int]]:
    """Yield text and id of every piece of `tokenizer.model`.

    Raises:
        Missing: it cannot be read, or is no sentencepiece model.
    """
    try:
        for number, piece in enumerate(sentencepiece_file.read_pieces(path)):
            yield piece.text, number
    except OSError as problem:
        raise Missing(f"{path.name} cannot be read: {problem.strerror}") from problem
    except sentencepiece_file.BadModel as problem:
        raise Missing(f"{path.name} is no sentencepiece model: {problem}") from problem
