"""Read the pieces of a sentencepiece model: a protocol buffer, read without its libraries.

A model holds one message a piece, in the order of their ids: its text, its score and its kind. The
bytes may be anybody's: every length is checked before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mudpuppy.files import open_regular

LIMIT_BYTES = 20_000_000
"""Largest model that is read; Gemma's has 4 MB."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of pieces, which are also those of GGUF's tokens."""
_PIECES, _TEXT, _SCORE, _KIND = 1, 1, 2, 3
"""Field numbers: a piece in the model; text, score and kind in a piece."""
_WIDTHS = {1: 8, 5: 4}
"""Bytes of the wire types of fixed width."""


class BadModel(ValueError):
    """The bytes are no sentencepiece model; the message says why."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece."""

    text: str
    """Its text; what is no UTF-8 is replaced."""
    score: float = 0.0
    """The higher, the sooner it is put together."""
    kind: int = NORMAL
    """What it is for."""


def read_pieces(path: Path) -> Iterator[Piece]:
    """Yield the pieces of `tokenizer.model`, in the order of their ids.

    Raises:
        OSError: it cannot be read.
        BadModel: it is no sentencepiece model, or too large for one.
    """
    with open_regular(path) as handle:
        raw = handle.read(LIMIT_BYTES + 1)
    if len(raw) > LIMIT_BYTES:
        raise BadModel(f"it is larger than {LIMIT_BYTES:,} bytes")
    if not raw.startswith(b"\n"):  # the first field is a piece; tiktoken's form is lines of base64
        raise BadModel("it begins otherwise, with a form that is not read here")
    for field, value in _fields(raw):
        if field == _PIECES and isinstance(value, bytes):
            yield _piece(value)


def _piece(raw: bytes) -> Piece:
    text, score, kind = b"", 0.0, NORMAL
    for field, value in _fields(raw):
        if field == _TEXT and isinstance(value, bytes):
            text = value
        elif field == _SCORE and isinstance(value, float):
            score = value
        elif field == _KIND and isinstance(value, int):
            kind = value
    return Piece(text.decode("utf-8", "replace"), score, kind)


def _fields(raw: bytes) -> Iterator[tuple[int, bytes | int | float | None]]:
    """Yield number and content of every field; eight bytes of fixed width are left out."""
    at = 0
    while at < len(raw):
        key, at = _read_number(raw, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            number, at = _read_number(raw, at)
            yield field, number
        elif wire in _WIDTHS:
            width = _WIDTHS[wire]
            whole = wire == 5 and at + width <= len(raw)
            yield field, struct.unpack_from("<f", raw, at)[0] if whole else None
            at += width
        elif wire == 2:
            size, at = _read_number(raw, at)
            if at + size > len(raw):
                raise BadModel(f"a field ends {at + size - len(raw):,} bytes behind the file")
            yield field, raw[at : at + size]
            at += size
        else:
            raise BadModel(f"a field of the unknown kind {wire}")


def _read_number(raw: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and where it ends."""
    value, shift = 0, 0
    while at < len(raw) and shift < 64:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
    raise BadModel("it ends within a number")
