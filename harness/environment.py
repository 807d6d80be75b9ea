"""What a result was made with: versions, platform, git revision; found without importing torch."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("mudpuppy", "torch", "transformers", "peft", "trl", "datasets", "accelerate")
"""Packages whose versions decide what a cell does."""
PROJECT = Path(__file__).resolve().parents[1]
"""Folder that holds the four packages."""


def describe_environment() -> dict[str, Any]:
    """Return versions, platform, cores and git revision, as plain JSON types."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": count_cores(),
        "git": git_revision(),
        **{name: _version(name) for name in PACKAGES},
    }


def count_cores() -> int:
    """Return the number of CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git_revision() -> str | None:
    """Return the project's commit, with `+changes` when the tree differs; None outside git."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    return commit + ("+changes" if _git("status", "--porcelain", "-uno") else "")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    """Return what git says about the project, or None when there is no answer."""
    if not (PROJECT / ".git").exists():
        return None  # an installed copy must not report the repository it happens to lie in
    try:
        done = subprocess.run(
            ["git", "-C", str(PROJECT), *words], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
