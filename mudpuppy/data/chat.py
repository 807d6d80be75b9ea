"""Chat JSONL: read it, and say for every unusable line where it is and what was expected.

A line is `{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}`.
No torch: a broken dataset is reported before anything heavy is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mudpuppy.data.samples import ChatSample
from mudpuppy.errors import DatasetError, near_names, shown

ROLES = ("system", "user", "assistant", "tool")
EXPECTED = (
    'expected {"messages": [{"role": "user", "content": "..."}, '
    '{"role": "assistant", "content": "..."}]} on every line'
)
NUM_SHOWN = 5
"""Unusable lines that one message lists."""


class LineProblem(ValueError):
    """Why one line cannot be used."""


def read_chat(path: Path) -> tuple[ChatSample, ...]:
    """Read every conversation of a JSONL file; blank lines are passed over.

    Raises:
        DatasetError: the file cannot be read, is empty, or has unusable lines (all are counted,
            the first few are listed; `line` is the first).
    """
    _refuse_array(path)
    samples: list[ChatSample] = []
    problems: list[tuple[int, str]] = []
    for number, text in _lines(path):
        try:
            messages, ignored = _messages(text)
            samples.append(ChatSample(messages=messages, line=number, ignored=ignored))
        except LineProblem as problem:
            problems.append((number, str(problem)))
    if problems:
        _refuse(path, problems)
    if not samples:
        raise DatasetError("holds no samples", file=str(path), hint=EXPECTED)
    return tuple(samples)


def _refuse_array(path: Path) -> None:
    """Refuse a file that is one JSON array, once and not line by line."""
    if not path.is_file():
        return
    with path.open("rb") as handle:
        head = handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"[") and head[1:].lstrip()[:1] in (b"{", b"]"):
        raise DatasetError(
            "is one JSON array; one object a line is expected (JSONL)",
            file=str(path),
            line=1,
            hint="convert it, for example with jq -c '.[]'",
        )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered non-blank lines of the file."""
    try:
        if path.is_dir():
            raise DatasetError("is a folder; name the JSONL file inside it", file=str(path))
        if path.exists() and not path.is_file():  # it may never end, and is read twice
            raise DatasetError("is no regular file", file=str(path), hint="save it as a file")
        with path.open("rb") as handle:
            for number, raw in enumerate(handle, start=1):
                try:
                    # A byte-order mark is what editors on Windows leave at the start.
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DatasetError(
                        f"is not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}",
                        file=str(path),
                        line=number,
                        hint="convert the file, for example with iconv -t UTF-8",
                    ) from None
                if text.strip():
                    yield number, text
    except OSError as error:
        reason = error.strerror or str(error)
        raise DatasetError(f"cannot be read: {reason}", file=str(path)) from None


def _messages(text: str) -> tuple[tuple[dict[str, str], ...], tuple[str, ...]]:
    """Return the messages of one line, and the names of the fields that are not used.

    Raises:
        LineProblem: what was found instead.
    """
    try:
        value = json.loads(text.strip())
    except json.JSONDecodeError as error:
        raise LineProblem(f"not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError) as error:
        raise LineProblem(f"not JSON that can be read: {error}") from None
    if not isinstance(value, dict):
        raise LineProblem(f"found {_kind(value)} instead of an object")
    if "messages" not in value:
        keys = ", ".join(shown(key) for key in list(value)[:6]) or "no fields"
        near = "".join(near_names(key, ["messages"]) for key in list(value)[:6])
        raise LineProblem(f"no usable field: found {keys}{near}")
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        raise LineProblem(f"'messages' is {_kind(messages)} instead of a list with messages")
    read = tuple(_message(index, message) for index, message in enumerate(messages))
    if not any(m["role"] == "assistant" and m["content"].strip() for m in read):
        raise LineProblem("no assistant message with text: there is nothing to learn from")
    ignored = [key for message in messages for key in message if key not in ("role", "content")]
    return read, (*ignored, *(key for key in ("tools",) if value.get(key)))


def _message(index: int, message: Any) -> dict[str, str]:
    """Check one message of a line."""
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise LineProblem(f"{where} is {_kind(message)} instead of an object")
    role = message.get("role")
    if role not in ROLES:
        known = ", ".join(ROLES)
        near = near_names(role, ROLES) if isinstance(role, str) else ""
        raise LineProblem(f"{where}.role is {shown(role)}, expected one of {known}{near}")
    if "content" not in message:
        near = "".join(near_names(key, ["content"]) for key in message)
        found = ", ".join(shown(key) for key in list(message)[:6]) or "no fields"
        raise LineProblem(f"{where} has no 'content': found {found}{near}")
    if message.get("tool_calls"):
        raise LineProblem(f"{where} has tool_calls, which cannot be trained yet: leave it out")
    content = message["content"]
    if not isinstance(content, str):
        raise LineProblem(f"{where}.content is {_kind(content)} instead of a text")
    if not content.isascii() and any("\ud800" <= char <= "\udfff" for char in content):
        raise LineProblem(f"{where}.content holds half of a surrogate pair, which is no character")
    return {"role": role, "content": content}


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean"}
    if value is None:
        return "null"
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value), "a number")


def _refuse(path: Path, problems: list[tuple[int, str]]) -> None:
    """Raise one error for all unusable lines."""
    first, message = problems[0]
    more = [f"\n  {path}:{number}: {text}" for number, text in problems[1:NUM_SHOWN]]
    if len(problems) > NUM_SHOWN:
        more.append(f"\n  and {len(problems) - NUM_SHOWN} more unusable lines")
    raise DatasetError(message + "".join(more), file=str(path), line=first, hint=EXPECTED)
