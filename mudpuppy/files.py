"""Atomic writes: a file or a folder is the old one or the new one, never half (design, rule 9)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, and nothing else: a pipe would be waited for without end.

    Raises:
        OSError: it cannot be opened, or is no regular file (EINVAL).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary file, fsync and rename.

    A link stays a link: what it points to is replaced. What is no regular file, such as a pipe or
    a device, is written to as it is, since a rename would put a file in its place.

    Raises:
        OSError: the folder cannot be written; `path` is then unchanged.
    """
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as handle:
            handle.write(text)
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        Path(name).chmod(normal_file_mode())  # mkstemp makes the file private
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def normal_file_mode() -> int:
    """Return the permissions that a new file gets from the umask."""
    return 0o666 & ~_umask()


def normal_folder_mode() -> int:
    """Return the permissions that a new folder gets from the umask."""
    return 0o777 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        ValueError: the value holds a NaN or an infinity, which JSON cannot say.
    """
    write_text_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def fsync_folder(folder: Path) -> None:
    """Make the renames inside `folder` durable, or the contents of a file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a folder beside `target` that takes its name when the block ends, durable and whole.

    What a killed process left of an earlier try is removed first. A folder that is being filled is
    locked, so that nobody takes it for such a rest; the kernel drops the lock with its process.

    Args:
        target: must not exist unless it is to be replaced; its parent must.
        replace: whether a folder of that name is removed once the new one is there.

    Raises:
        OSError: it cannot be written, or is there; nothing has then changed.
    """
    prefix = f".{target.name}."
    _remove_abandoned(target.parent, prefix)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix, suffix=".tmp"))
    old = target.parent / f"{prefix}old.tmp"
    descriptor = os.open(work, os.O_RDONLY)
    try:
        with suppress(OSError):  # a disk without locks, where nothing counts as abandoned
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        work.chmod(normal_folder_mode())  # mkdtemp makes the folder private
        yield work
        for path in (work, *work.rglob("*")):
            fsync_folder(path)
        if replace and target.exists():
            target.rename(old)
        work.rename(target)
        fsync_folder(target.parent)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        os.close(descriptor)
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield an empty file beside `target` that takes its name when the block ends, and is durable.

    As `atomic_folder`: the rests of killed processes are removed first, and a file that is being
    filled is locked. What `target` was before is replaced; a link stays a link.

    Raises:
        OSError: it cannot be written; nothing has then changed.
    """
    target = Path(os.path.realpath(target))
    prefix = f".{target.name}."
    _remove_abandoned(target.parent, prefix)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=".tmp")
    work = Path(name)
    try:
        with suppress(OSError):  # a disk without locks, where nothing counts as abandoned
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        work.chmod(normal_file_mode())  # mkstemp makes the file private
        yield work
        fsync_folder(work)
        work.replace(target)
        fsync_folder(target.parent)
    finally:
        os.close(descriptor)
        work.unlink(missing_ok=True)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove what `atomic_folder` and `atomic_file` made and no process fills any more."""
    ours = re.compile(re.escape(prefix) + r"(old|[a-z0-9_]{8})\.tmp")
    for path in parent.iterdir():
        if ours.fullmatch(path.name) and not path.is_symlink():
            with suppress(OSError):  # it is locked, or somebody else's
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                finally:
                    os.close(descriptor)
