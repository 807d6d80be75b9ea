"""What keeps a text from being a path on Linux (standard library only)."""

from __future__ import annotations

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4095
"""What Linux takes for a name and for a path."""


def find_path_fault(text: str) -> str:
    """Return what keeps a text from being a path, or nothing."""
    if not text:
        return "is empty"
    if "\0" in text:
        return "a path cannot hold a NUL character"
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        return "is not UTF-8"
    if max(map(len, encoded.split(b"/"))) > MAX_NAME_BYTES:
        return f"a name is longer than {MAX_NAME_BYTES} bytes"
    return f"is longer than {MAX_PATH_BYTES} bytes" if len(encoded) > MAX_PATH_BYTES else ""
