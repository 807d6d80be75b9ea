"""Folders of which only headers are at hand: their values are holes, and must not be read."""

from __future__ import annotations

from pathlib import Path

from harness.registry import Missing

WHY = "only settings and headers were fetched from the hub; download the model to have it checked"
"""Why a value is missing."""
_ROOTS: set[Path] = set()


def declare_header_only(root: Path) -> None:
    """Have every read of a value below a folder refused."""
    _ROOTS.add(root.resolve())


def forget_header_only(root: Path) -> None:
    """Take a folder from the list."""
    _ROOTS.discard(root.resolve())


def is_header_only(folder: Path) -> bool:
    """Whether a folder holds headers alone."""
    if not _ROOTS:
        return False
    here = folder.resolve()
    return any(here.is_relative_to(root) for root in _ROOTS)


def require_values(folder: Path) -> None:
    """Refuse to read values that are not there.

    Raises:
        Missing: only headers of this folder are at hand.
    """
    if is_header_only(folder):
        raise Missing(WHY)
