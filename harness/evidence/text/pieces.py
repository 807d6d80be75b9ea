"""Read the vocabulary of a sentencepiece model: a protocol buffer with one text for every id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.registry import Missing
from mudpuppy.files import open_regular

LIMIT_BYTES = 20_000_000
"""Largest model that is read; Gemma's has 4 MB."""
PIECES, TEXT = 1, 1
"""Field numbers: a piece in the model, and the text in a piece."""
_WIDTHS = {1: 8, 5: 4}
"""Bytes of the wire types of fixed width."""


class _Damaged(ValueError):
    """The bytes are no protocol buffer."""


def read_pieces(path: Path) -> Iterator[tuple[str, int]]:
    """Yield text and id of every piece of `tokenizer.model`.

    Raises:
        Missing: it cannot be read, or is no sentencepiece model.
    """
    try:
        with open_regular(path) as handle:
            raw = handle.read(LIMIT_BYTES + 1)
    except OSError as problem:
        raise Missing(f"{path.name} cannot be read: {problem.strerror}") from problem
    if len(raw) > LIMIT_BYTES:
        raise Missing(f"{path.name} is larger than {LIMIT_BYTES:,} bytes")
    if not raw.startswith(b"\n"):  # the first field is a piece; tiktoken's form is lines of base64
        raise Missing(f"{path.name} is no sentencepiece model; its form is not read here")
    number = 0
    try:
        for field, value in _fields(raw):
            if field == PIECES and value is not None:
                text = next((part for key, part in _fields(value) if key == TEXT), None)
                yield (text or b"").decode("utf-8", "replace"), number
                number += 1
    except _Damaged as problem:
        raise Missing(f"{path.name} is no sentencepiece model: {problem}") from problem


def _fields(raw: bytes) -> Iterator[tuple[int, bytes | None]]:
    """Yield number and content of every field; the content of numbers is left out."""
    at = 0
    while at < len(raw):
        key, at = _read_number(raw, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            _, at = _read_number(raw, at)
            yield field, None
        elif wire in _WIDTHS:
            at += _WIDTHS[wire]
            yield field, None
        elif wire == 2:
            size, at = _read_number(raw, at)
            if at + size > len(raw):
                raise _Damaged(f"a field ends {at + size - len(raw):,} bytes behind the file")
            yield field, raw[at : at + size]
            at += size
        else:
            raise _Damaged(f"a field of the unknown kind {wire}")


def _read_number(raw: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and where it ends."""
    value, shift = 0, 0
    while at < len(raw) and shift < 64:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
    raise _Damaged("it ends within a number")
