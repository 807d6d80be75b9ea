"""Temporary folders for what is fetched, and an end for those whose process was killed.

Each is held by a lock that dies with its process, so that whoever comes later can tell a folder
that is in use from one that was left: a process id tells it neither in another container that
shares the folder for temporary files, nor after the id was given to somebody else.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "mudpuppy-hub-"
YOUNG_S = 60.0
"""Age below which a folder may not be locked yet by who makes it."""


@contextmanager
def hold_room() -> Iterator[Path]:
    """Make a folder, and remove it and those that were left by the dead."""
    sweep_rooms()
    root = Path(tempfile.mkdtemp(prefix=PREFIX))
    handle = os.open(root, os.O_RDONLY)
    try:
        _lock(handle)
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)
        os.close(handle)


def sweep_rooms() -> None:
    """Remove folders of ours that nobody holds any more."""
    for root in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            # A link of this name may lead anywhere.
            handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # gone meanwhile, somebody else's, or no folder
        try:
            about = os.fstat(handle)
            is_old = time.time() - about.st_mtime > YOUNG_S
            if about.st_uid == os.getuid() and is_old and _lock(handle):
                shutil.rmtree(root, ignore_errors=True)
        finally:
            os.close(handle)


def _lock(handle: int) -> bool:
    """Whether a folder could be locked; not where another holds it, or where there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
