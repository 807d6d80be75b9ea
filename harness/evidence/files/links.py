"""Links of a folder: which lead out of it, which of those are read, and what they lead to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.files import Link
from harness.registry import Missing, NotApplicable

SYSTEM = (Path("/proc"), Path("/sys"), Path("/dev"))
"""Where the system shows its state and its devices as files: no weights lie there."""
MEMORY = Path("/dev/shm")
"""The one place of those that holds ordinary files."""


def resolve(path: Path) -> Path | None:
    """Return where a path leads to; None for links in a ring."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return None


def stays_at_home(root: Path, target: Path) -> bool:
    """Whether a place is in a folder, or in the `blobs` of the hub's cache that the folder is of.

    Links into `blobs` are how the cache of a model hub is laid out.
    """
    home = resolve(root)
    if home is None:
        return False
    caches = [place.parent for place in home.parents if place.name == "snapshots"]
    return any(target.is_relative_to(one) for one in (home, *(one / "blobs" for one in caches)))


def is_refused(path: Path) -> bool:
    """Whether a path is a link to what is never read: no regular file, or a file of the system."""
    if not path.is_symlink():
        return False
    target = resolve(path)
    if target is None or not target.is_file():
        return True
    inside = any(target.is_relative_to(place) for place in SYSTEM)
    return inside and not target.is_relative_to(MEMORY)


@provides("links")
def list_links(evidence: CheckpointEvidence) -> tuple[Link, ...]:
    """Return the links to files outside of the folder, in the order of their names."""
    if evidence.file:
        raise NotApplicable("one file was given, not a folder")
    try:
        return tuple(_follow(evidence.folder))
    except OSError as problem:
        raise Missing(f"the folder cannot be listed: {problem.strerror}") from problem


def _follow(root: Path) -> Iterator[Link]:
    for path in sorted(root.iterdir()):
        if not path.is_symlink() or path.is_dir():
            continue
        target = resolve(path)
        if target is None or not stays_at_home(root, target):
            yield Link(name=path.name, target=_write(target), is_read=not is_refused(path))


def _write(target: Path | None) -> str:
    """Return a path as a text that every encoding of a report can hold."""
    if target is None:
        return "a ring of links"
    return os.fsencode(target).decode("utf-8", "backslashreplace")[:300]
