"""Answers kept in a file while they come, so that an evaluation that was killed goes on.

A line of JSON an answer, appended and synced. Its key is a hash of the question, of the model and
of the settings. Where an identity does not tell a model from another one behind the same address,
`mudpuppy.asking.ask` asks for some answers again before it takes any.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from mudpuppy.asking.answers import Answer
from mudpuppy.errors import MudpuppyError, UsageError

VERSION = 1
"""Form of a line."""
KEY_CHARS = 32
"""Hexadecimal digits of a key: two questions never share one."""


def key_of(identity: Mapping[str, str], prompt: str, max_tokens: int) -> str:
    """Return what an answer is found by."""
    said = json.dumps([VERSION, dict(identity), prompt, max_tokens], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:KEY_CHARS]


class Kept:
    """The answers in a file; `open_kept` opens it."""

    def __init__(self, path: Path, handle: BinaryIO) -> None:
        self.path = path
        self._handle = handle
        self._answers = _read(path, handle)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        """Return the answer of a key, where it is known."""
        return self._answers.get(key)

    def add(self, key: str, prompt: str, answer: Answer) -> None:
        """Append an answer, durably.

        Raises:
            MudpuppyError: it cannot be written.
        """
        line = {"version": VERSION, "key": key, "prompt": prompt, **asdict(answer)}
        try:
            self._handle.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            self._handle.flush()
            os.fsync(self._handle.fileno())
        except OSError as error:
            raise MudpuppyError(
                f"{self.path}: the answers cannot be kept: {error.strerror}",
                hint="see whether the disk is full (df); what was kept before is complete",
            ) from error
        self._answers[key] = answer


@contextmanager
def open_kept(path: Path) -> Iterator[Kept]:
    """Open a file of answers, or begin one; nobody else writes to it meanwhile.

    Half a line at its end, which a killed process or a full disk leaves, is taken off.

    Raises:
        UsageError: it cannot be opened, holds something else, or another process writes to it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
    except OSError as error:
        raise UsageError(f"{path}: the answers cannot be kept there: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{path}: another process keeps its answers there", hint="name another file"
            ) from error
        except OSError:  # a disk without locks
            pass
        yield Kept(path, handle)


def _read(path: Path, handle: BinaryIO) -> dict[str, Answer]:
    """Return the answers of an open file, and leave it where the next one belongs."""
    raw = handle.read()
    whole = raw.rfind(b"\n") + 1
    found: dict[str, Answer] = {}
    for number, line in enumerate(raw[:whole].splitlines(), start=1):
        try:
            value = json.loads(line)
            if value["version"] != VERSION:
                raise ValueError(f"version {value['version']}, not {VERSION}")
            found[str(value["key"])] = _answer(value)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UsageError(
                f"{path}:{number}: this is no kept answer: {error}",
                hint="delete the line to have the question asked again, or name another file",
            ) from error
    if not whole and raw and not raw.startswith(b"{"):
        raise UsageError(f"{path} holds something else than answers", hint="name another file")
    handle.seek(whole)
    if whole < len(raw):
        handle.truncate()
    return found


def _answer(value: Mapping[str, Any]) -> Answer:
    text, ended, tokens = value["text"], value["ended"], value["tokens"]
    if not isinstance(text, str) or not isinstance(ended, bool | None):
        raise TypeError("text or ended has another type")
    if tokens is not None and type(tokens) is not int:
        raise TypeError("tokens is no number")
    return Answer(text=text, ended=ended, tokens=tokens, seconds=float(value["seconds"]))
