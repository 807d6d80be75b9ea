"""Text that all reports share: made safe to print, escaped for Markdown, evidence as a line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from harness.findings import Evidence

SHOWN_EVIDENCE = 6
"""Pieces of evidence shown for one finding: the worst five and how many more there are."""
MAX_CHARS = 2000
"""Longest piece of a stranger's text that is shown."""


def clean(text: str) -> str:
    """Return a stranger's text without control characters, direction marks or excessive length."""
    return _printable(_cut(text), "")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 3] + "..."


def clean_lines(text: str) -> str:
    """Return text of any length without control characters, line ends and tabs excepted."""
    return _printable(text, "\n\t")


def _printable(text: str, kept: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def write_columns(
    rows: Sequence[Sequence[str]], headers: Sequence[str], *, right: Sequence[int] = ()
) -> str:
    """Return rows of text under headers, in columns as wide as they must be.

    For lists of any length: a hundred thousand rows take a fraction of a second.

    Args:
        rows: one text a column; none may hold a line end.
        headers: one a column.
        right: places of the columns that stand at the right, such as numbers.
    """
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    forms = [f"{{:{'>' if i in right else '<'}{width}}}" for i, width in enumerate(widths)]
    form = "  ".join(forms)
    lines = [headers, ["-" * width for width in widths], *rows]
    return "\n".join(form.format(*line).rstrip() for line in lines)


def escape_markdown(text: str) -> str:
    """Return text as one line in which Markdown and HTML find nothing to interpret."""
    line = _cut(" ".join(clean_lines(text).split()))
    line = re.sub(r"([\\`*_\[\]<>|#&~$]|:(?=\S)|^[-+=])", r"\\\1", line)
    line = re.sub(r"^(\d{1,9})([.)])(?=\s|$)", r"\1\\\2", line)
    # A backslash does not keep forges from calling people by name; a space of no width does.
    return re.sub(r"@(?=\w)", "@&#8203;", line)


def code_markdown(text: str) -> str:
    """Return text that may stand between backticks, also inside a table."""
    return _cut(" ".join(clean_lines(text).split())).replace("`", "'").replace("|", "\\|")


def describe_evidence(piece: Evidence) -> str:
    """Return one piece of evidence as a line."""
    where = " ".join(str(part)[:200] for part in (piece.file, piece.tensor) if part)
    text = piece.what + (f" in {where}" if where else "")
    if piece.found is not None:
        text += f": {format_value(piece.found)}"
    if piece.expected is not None:
        text += f" (expected {format_value(piece.expected)})"
    return clean(text)


def format_value(value: Any) -> str:
    """Return a value of the evidence as short text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(format_value(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
