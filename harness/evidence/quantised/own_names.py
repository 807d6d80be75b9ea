"""How our own layers in 4 or 8 bits are declared, told without numpy: files alone need no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHOD = "mudpuppy"
"""What `quant_method` says of our checkpoints."""
KIND = "mudpuppy-blocks"
"""Our layers: levels of 4 or 8 bits, and a scale for every block of a row."""
MOST_NAMES = 100_000


def is_listed(name: str, declared: Mapping[str, Any]) -> bool:
    """Whether our method lists a layer as packed."""
    names = declared.get("modules")
    listed = names[:MOST_NAMES] if isinstance(names, list) else ()
    return last_parts(name) in {last_parts(one) for one in listed if isinstance(one, str)}


def last_parts(name: str) -> str:
    """Return a name from the number of its block on: files and live models differ before it."""
    words = name.split(".")
    first = next((place for place, word in enumerate(words) if word.isdigit()), 0)
    return ".".join(words[first:])
