"""What a run or a merge that was killed leaves in its output folder, told from what is not ours.

Standard library only: it is asked before torch is imported.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import IO

from mudpuppy.errors import OutputError
from mudpuppy.logs import LOG_FOLDERS
from mudpuppy.provenance import PROVENANCE_FILE

CHECKPOINT_MANIFEST = "mudpuppy-checkpoint.json"
CHECKPOINT_MARK = ".mudpuppy-checkpoint.tmp"
"""In a checkpoint of ours from before its first file until its manifest is there."""
CHECKPOINT_FOLDER = re.compile(r"checkpoint-(\d+)")
LOCK_FILE = ".lock"
"""Held by the run that writes into an output folder, and removed at its end."""
STEPS_FILE = "steps.jsonl"
STAGING_PREFIX = ".saving-"
ACTIVATIONS_PREFIX = ".activations-"
"""Begins the name of the folder in which GPTQ keeps hidden states that do not fit into memory."""
BASE_PREFIX = "mudpuppy-base-"
"""Begins the name of a temporary folder with the weights of a base that is read block by block."""
MOVING_FILE = ".moving.json"
"""In a staging folder while its entries are moved into place: their names."""
RUN_FILE = "run.json"
"""The run's record, written right before the manifest."""
TEMPORARY = tuple(f".{name}." for name in (STEPS_FILE, RUN_FILE, PROVENANCE_FILE))
"""Beginnings of the names that our files have while they are written."""
SCRATCH_PREFIXES = (ACTIVATIONS_PREFIX,)
"""Beginnings of the names of folders that are worth nothing once their run is over."""
LEFTOVERS = (
    *(STEPS_FILE, STAGING_PREFIX, LOCK_FILE, *LOG_FOLDERS.values()),
    *(*TEMPORARY, *SCRATCH_PREFIXES),
)
"""Beginnings of the names that a run leaves behind when it is stopped before it has saved."""


def is_unfinished_checkpoint(path: Path) -> bool:
    """Return whether a checkpoint of ours was being written there when the run was killed."""
    if not CHECKPOINT_FOLDER.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
        return False
    if (path / CHECKPOINT_MANIFEST).exists():
        return False
    return (path / CHECKPOINT_MARK).is_file() or not any(path.iterdir())


def half_moved(output: Path) -> set[str]:
    """Return the names of what was being moved into place; none where the set is complete."""
    if (output / PROVENANCE_FILE).exists():
        return set()
    names: set[str] = set()
    for path in output.glob(f"{STAGING_PREFIX}*/{MOVING_FILE}"):
        try:
            listed = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        except (ValueError, RecursionError):
            continue  # killed while it was written: nothing had been moved
        names.update(str(name) for name in listed if Path(str(name)).name == name)
        names.add(RUN_FILE)
    return names


def holds_only_leftovers(output: Path) -> bool:
    """Return whether nothing in a folder was finished, and nothing is anybody else's."""
    moved = half_moved(output)
    return all(
        path.name.startswith(LEFTOVERS) or path.name in moved or is_unfinished_checkpoint(path)
        for path in output.iterdir()
    )


def remove_unfinished(output: Path) -> None:
    """Remove unfinished checkpoints and what was half moved; the caller holds the lock."""
    remove_half_moved(output)
    forget_moves(output)
    for path in list(output.iterdir()):
        if is_unfinished_checkpoint(path):
            shutil.rmtree(path)
        elif path.name.startswith(TEMPORARY):
            path.unlink()
        elif path.name.startswith(SCRATCH_PREFIXES):
            shutil.rmtree(path)


def make_base_folder() -> tuple[Path, IO[str]]:
    """Make a temporary folder for the weights of a base, and remove those of killed runs.

    It cannot lie in the output folder, which is not there before the base is known to be sound.

    Returns:
        The folder, and its lock: who lets go of that lets the next run remove the folder.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{BASE_PREFIX}*/{LOCK_FILE}"):
        _remove_unlocked(path)
    folder = Path(tempfile.mkdtemp(prefix=BASE_PREFIX))
    lock = (folder / LOCK_FILE).open("w", encoding="utf-8")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def _remove_unlocked(path: Path) -> None:
    """Remove the folder of a lock that nobody holds; another user's is left."""
    try:
        if path.is_symlink() or path.parent.is_symlink() or path.stat().st_uid != os.getuid():
            return
        with path.open("r+", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent)
    except (BlockingIOError, FileNotFoundError):
        return  # it is in use, or another run has just removed it


def forget_moves(output: Path) -> None:
    """Remove staging folders: the set that was moved is complete, or nothing of it is left."""
    for path in output.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(path)


def remove_half_moved(output: Path) -> None:
    """Remove the part of a set that has been moved into place, where the rest is missing."""
    for path in [output / name for name in half_moved(output)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def require_ordinary(output: Path) -> None:
    """Refuse names of ours that are of another kind: opening a pipe would wait for ever.

    Raises:
        OutputError: the lock or the step log is no file, or a staging folder is no folder.
    """
    for path in output.iterdir() if output.is_dir() else ():
        if path.name in (LOCK_FILE, STEPS_FILE):
            is_good = path.is_file() and not (path.name == LOCK_FILE and path.is_symlink())
            kind = "regular file"
        elif path.name.startswith((STAGING_PREFIX, *SCRATCH_PREFIXES)):
            is_good, kind = path.is_dir() and not path.is_symlink(), "folder"
        else:
            continue
        if not is_good:
            raise OutputError(
                f"{path} is in the way: it is no {kind}",
                hint="remove it, or name another output folder",
            )
