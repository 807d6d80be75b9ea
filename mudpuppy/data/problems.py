"""Why a line of a dataset cannot be used: the checks and the words that all formats share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mudpuppy.errors import near_names, shown

NAMES_SHOWN = 6
"""Field names that one message repeats."""


class LineProblem(ValueError):
    """Why one line cannot be used; `hint` says what to do where that is not the usual thing."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def kind_of(value: Any) -> str:
    """Return what a JSON or Arrow value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, list) and not value:
        return "an empty list"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "a number"
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", bytes: "bytes"}
    return names.get(type(value), f"a value of type {type(value).__name__}")


def field_names(value: Iterable[Any]) -> str:
    """Return the first names of an object's fields, quoted, as messages repeat them."""
    return ", ".join(shown(key) for key in list(value)[:NAMES_SHOWN]) or "no fields"


def near_fields(found: Iterable[str], known: Iterable[str]) -> str:
    """Return what the found names may have been meant to be, or nothing."""
    return "".join(near_names(str(key), known) for key in list(found)[:NAMES_SHOWN])


def check_text(value: Any, where: str, *, may_be_blank: bool = False) -> str:
    """Return `value` when it is a text that a tokenizer can take.

    Raises:
        LineProblem: it is no text, is blank, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise LineProblem(f"{where} is {kind_of(value)} instead of a text")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise LineProblem(f"{where} holds half of a surrogate pair, which is no character")
    if not may_be_blank and not value.strip():
        raise LineProblem(f"{where} is {'blank' if value else 'empty'}: there is nothing to learn")
    return value


def check_tree(value: Any, where: str) -> Any:
    """Return a value of any shape when every text in it is one."""
    if isinstance(value, str):
        check_text(value, where, may_be_blank=True)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            check_tree(key, where)
            check_tree(inner, where)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_tree(inner, where)
    return value
