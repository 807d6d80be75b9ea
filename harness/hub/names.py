"""hf://org/name[@revision][/place]: which repository, revision and place on the hub is meant."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mudpuppy.errors import UsageError

SCHEME = "hf://"
"""How a name of the hub begins; nothing else is ever looked up on the network."""
DEFAULT_ENDPOINT = "https://huggingface.co"
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_NAME = re.compile(rf"(?P<id>{_PART}/{_PART})(?:@(?P<revision>[^@\s]+?))?(?P<place>(?:/[^/@]+)*)/?")


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A place on the hub."""

    repository: str
    """org/name."""
    revision: str
    """Branch, tag or commit."""
    place: str
    """Folder or file inside the repository; empty for its top."""

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        place = f"/{self.place}" if self.place else ""
        return f"{SCHEME}{self.repository}{revision}{place}"


def is_hub_name(word: object) -> bool:
    """Whether a path is meant to be looked up on the hub."""
    return str(word).startswith((SCHEME, "hf:/"))  # a Path has lost the second stroke


def parse_hub_name(word: str) -> HubName:
    """Take a name apart.

    A revision that holds strokes must be followed by nothing: `hf://org/name@refs/pr/1`.

    Raises:
        UsageError: it has another form.
    """
    inside = word.removeprefix("hf:").lstrip("/")
    found = _NAME.fullmatch(inside)
    parts = (found["place"] or "").strip("/").split("/") if found else []
    if found is None or ".." in parts or "." in parts:
        raise UsageError(
            f"{word[:200]} is no name of a model hub",
            hint="expected hf://org/name, hf://org/name@revision or hf://org/name/folder",
        )
    revision, place = found["revision"] or "main", (found["place"] or "").strip("/")
    if revision == "refs" and place:  # a reference is one revision, strokes and all
        revision, place = f"{revision}/{place}", ""
    return HubName(repository=found["id"], revision=revision, place=place)


def endpoint() -> str:
    """Return the address of the hub: `HF_ENDPOINT`, or the public one."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or DEFAULT_ENDPOINT


def find_token() -> str | None:
    """Return the token that the hub's own tools would use, from the same places; never shown."""
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "") not in ("", "0"):
        return None
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := os.environ.get(name, "").strip():
            return token
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    home = Path(os.environ.get("HF_HOME") or default)
    path = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    try:
        return path.read_text(encoding="utf-8")[:1000].strip() or None
    except (OSError, UnicodeDecodeError):
        return None
