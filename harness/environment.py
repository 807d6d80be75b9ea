"""What a result was made with: versions, platform, git revision; found without importing torch."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("mudpuppy", "torch", "transformers", "peft", "trl", "datasets", "accelerate")
"""Packages whose versions decide what a cell does."""
PROJECT = Path(__file__).resolve().parents[1]
"""Folder that holds the four packages."""


SOURCES = ("mudpuppy", "harness", "scenarios")
"""Packages whose source decides what a cell does."""
SOURCE_SUFFIXES = (".py", ".yaml", ".jinja", ".jsonl", ".png")
"""Endings of the files that count as source."""
DECISIVE = ("sources", "python", *PACKAGES)
"""What must be the same for a result to be kept: the code, ours and the libraries'."""


def describe_environment() -> dict[str, Any]:
    """Return versions, platform, cores, git revision and source hash, as plain JSON types."""
    return {
        "sources": hash_sources(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": count_cores(),
        "git": git_revision(),
        **{name: _version(name) for name in PACKAGES},
    }


def hash_sources() -> str:
    """Return a hash of every source and data file of the engine and the harness."""
    digest = hashlib.sha256()
    for package in SOURCES:
        for path in sorted((PROJECT / package).rglob("*")):
            if path.suffix in SOURCE_SUFFIXES and path.is_file():
                digest.update(path.relative_to(PROJECT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def sign_sources() -> str:
    """Return a hash of the names, times and sizes of the same files, which is cheap.

    Installing or removing a package changes it too.
    """
    digest = hashlib.sha256()
    installed = Path(sysconfig.get_path("purelib"))
    if installed.is_dir():
        digest.update(str(installed.stat().st_mtime_ns).encode())
    for package in SOURCES:
        for path in sorted(_walk(str(PROJECT / package))):
            state = Path(path).stat()
            digest.update(f"{path} {state.st_mtime_ns} {state.st_size}\n".encode())
    return digest.hexdigest()[:12]


def _walk(folder: str) -> Iterator[str]:
    """Yield the source files below a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from () if entry.name == "__pycache__" else _walk(entry.path)
            elif entry.name.endswith(SOURCE_SUFFIXES):
                yield entry.path


def is_same_code(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two environments ran the same code."""
    return all(one.get(name) == other.get(name) for name in DECISIVE)


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
