"""Read JSON written by strangers: sizes capped, depth survived, one kind of error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mudpuppy.files import open_regular

CONFIG_LIMIT_BYTES = 8_000_000
"""Largest configuration file that is read; parsed, it takes some twenty times as much memory."""
TOKENIZER_LIMIT_BYTES = 64_000_000
"""Largest tokenizer.json, vocabulary or shard index that is read (Gemma's tokenizer has 33 MB)."""
MOST_OBJECTS, MOST_LISTS, MOST_SEPARATORS = 250_000, 1_000_000, 2_000_000
"""What a file that is parsed may hold: a text of `[],[],` takes 24 times its size of memory. A
tokenizer of 262,144 tokens with 514,906 merges as pairs has 6,418, 514,908 and 1,336,862."""
LARGE_FILES = ("tokenizer.json", "vocab.json", "added_tokens.json", "model.safetensors.index.json")
"""Files that may be large."""


def limit_of(name: str) -> int:
    """Return how many bytes of a JSON file of this name are read."""
    return TOKENIZER_LIMIT_BYTES if name in LARGE_FILES else CONFIG_LIMIT_BYTES


def is_path(text: str) -> bool:
    """Whether a stranger's text can be handed to the file system as a path at all."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        return False  # half of a surrogate pair
    return b"\0" not in raw and len(raw) <= 2000


class UnreadableJson(ValueError):
    """A file that is not the JSON object it should be; the message says why."""


def parse_object(raw: bytes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a JSON object and the keys of its top level that occur more than once.

    Raises:
        UnreadableJson: the bytes are not one JSON object.
    """
    require_few_values(raw)
    last_pairs: list[tuple[str, Any]] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal last_pairs
        last_pairs = pairs  # the outermost object is closed last
        return dict(pairs)

    value = _require_object(_parse(_decode(raw), collect))
    seen: set[str] = set()
    twice = [key for key, _ in last_pairs if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
    return value, tuple(twice)


def require_few_values(raw: bytes) -> None:
    """Refuse a text that would take too much memory once parsed; counting takes milliseconds.

    Raises:
        UnreadableJson: it holds more objects, lists or separators than any real file.
    """
    limits = ((b"{", MOST_OBJECTS), (b"[", MOST_LISTS), (b",", MOST_SEPARATORS))
    for mark, most in limits:
        if (count := raw.count(mark)) > most:
            what = f"'{mark.decode()}' stands there {count:,} times, at most {most:,} are read"
            raise UnreadableJson(f"too many values: {what}")


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UnreadableJson(_shorten(str(problem))) from problem


def _parse(
    text: str, collect: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None
) -> Any:
    try:
        return json.loads(text, object_pairs_hook=collect)
    except RecursionError:
        raise UnreadableJson("nested too deeply to be read") from None
    except ValueError as problem:
        raise UnreadableJson(_shorten(str(problem))) from problem


def _require_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UnreadableJson(f"expected an object, found {type(value).__name__}")
    return value


def read_object(path: Path, limit_bytes: int = CONFIG_LIMIT_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UnreadableJson: it cannot be read, is too large, or is not one JSON object.
    """
    return _require_object(_parse(_read(path, limit_bytes)))


def read_list(path: Path, limit_bytes: int = CONFIG_LIMIT_BYTES) -> list[Any]:
    """Return the JSON list in a file.

    Raises:
        UnreadableJson: it cannot be read, is too large, or is not one JSON list.
    """
    value = _parse(_read(path, limit_bytes))
    if not isinstance(value, list):
        raise UnreadableJson(f"expected a list, found {type(value).__name__}")
    return value


def _read(path: Path, limit_bytes: int) -> str:
    try:
        with open_regular(path) as handle:
            raw = handle.read(limit_bytes + 1)
    except OSError as problem:
        raise UnreadableJson(f"cannot be read: {problem.strerror}") from problem
    if len(raw) > limit_bytes:
        raise UnreadableJson(f"larger than {limit_bytes:,} bytes")
    if raw.startswith(b"version https://git-lfs"):
        raise UnreadableJson("a git-LFS pointer, not the file itself")
    require_few_values(raw)
    return _decode(raw)  # the bytes go: text takes four times as much, values as much again


def _shorten(text: str) -> str:
    return text if len(text) <= 160 else text[:157] + "..."
