"""Keep what takes long to make between runs: one folder for one content, complete or not there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mudpuppy.errors import OutputError
from mudpuppy.files import atomic_folder


def cache_root() -> Path:
    """Return the cache folder: MUDPUPPY_CACHE, or mudpuppy under the user's cache folder."""
    chosen = os.environ.get("MUDPUPPY_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "mudpuppy"


def fill(
    target: Path,
    build: Callable[[Path], object],
    is_complete: Callable[[Path], bool],
    *,
    force: bool = False,
) -> Path:
    """Return `target`, built beside its place and renamed unless it is already complete.

    A lock lets a second process wait for the first; the kernel drops it with a killed one, and
    what that one left behind is removed here.

    Args:
        target: the folder, in the cache.
        build: writes it; called with another folder that takes its name in the end.
        is_complete: whether a folder is what `build` writes.
        force: build it also if it is complete.

    Raises:
        OutputError: it cannot be written.
    """
    if not force and is_complete(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / f".{target.name}.lock"):
            if not force and is_complete(target):
                return target
            with atomic_folder(target, replace=True) as folder:
                build(folder)
    except OSError as problem:
        hint = "name a folder that can be written in MUDPUPPY_CACHE"
        raise OutputError(f"{target}: cannot be built: {problem}", hint=hint) from problem
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
