"""Which kind of weights one file holds, by its name or, without a telling name, its first bytes."""

from __future__ import annotations

from pathlib import Path

from mudpuppy.files import open_regular

GGUF_MARK = b"GGUF"
"""How a GGUF file starts."""
SUFFIXES = {
    ".safetensors": "safetensors",
    ".gguf": "gguf",
    **dict.fromkeys((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"), "pickle"),
}
"""What the end of a name says."""


def recognise(path: Path) -> str:
    """Return `safetensors`, `gguf` or `pickle`; empty for a file of another kind.

    A model hub's cache and Ollama keep files under the hash of their content, without an ending.
    """
    known = SUFFIXES.get(path.suffix.lower())
    if known is not None:
        return known
    try:
        with open_regular(path) as handle:
            head = handle.read(9)
    except OSError:
        return ""
    if head.startswith(GGUF_MARK):
        return "gguf"
    return "safetensors" if head[8:9] == b"{" and head[5:8] == b"\0\0\0" else ""
