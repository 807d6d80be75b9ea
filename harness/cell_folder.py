"""The folder of a cell: made anew, locked with its run, told to the worker, kept when finished."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from harness.findings import Status
from harness.matrix import Cell
from harness.results import RESULT_FILE, CellResult, ResultError, read_result
from mudpuppy.errors import OutputError
from mudpuppy.files import write_json_atomic

CELL_SCHEMA_VERSION = 1
"""Version of `config.json`, which tells the worker what to do."""
CELL_FILE = "config.json"
LOG_FILE = "output.log"
LOCK_FILE = ".lock"
SCRATCH_FILE = "scratch.path"
PREVIOUS_FILE = "previous.json"
EARLIER = "earlier_attempts"
"""Key of the instructions: how many attempts had a result before this one."""
TAIL_LINES = 50
TAIL_BYTES = 16_384

Rerun = Literal["none", "failed", "all"]
"""Which finished cells run again: none, all that did not pass, or all."""


@contextmanager
def lock_folder(run_dir: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a run folder, so that no two runners work in it; a killed holder lets go by itself.

    Args:
        run_dir: the folder; made when it is not there.
        shared: hold it together with others that also share it.

    Raises:
        OutputError: it cannot be written, or somebody else holds it.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = (run_dir / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{run_dir}: cannot be written: {error.strerror}", hint="give another folder with -o"
        ) from None
    with handle:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise OutputError(
                f"{run_dir}: in use by {holder}",
                hint="wait for it to end, or give another folder with -o",
            ) from None
        if not shared:
            handle.truncate(0)
            handle.write(f"process {os.getpid()}\n")
            handle.flush()
        yield


def make_folder(folder: Path, cell: Cell, plant: str | None, *, earlier: int = 0) -> Path:
    """Make a cell's empty folder with its instructions, and a scratch folder; return the latter.

    The scratch folder is not inside the first: sockets in it would have names that are too long.
    `earlier` is how many attempts had a result before this one.

    Raises:
        OSError: one of them cannot be made.
    """
    folder.mkdir(parents=True)
    scratch = Path(tempfile.mkdtemp(prefix=_scratch_prefix(folder)))
    (folder / SCRATCH_FILE).write_text(str(scratch), encoding="utf-8")
    instructions = {"schema_version": CELL_SCHEMA_VERSION, **cell.identity(), "plant": plant}
    write_json_atomic(folder / CELL_FILE, {**instructions, EARLIER: earlier})
    return scratch


def wipe_folder(folder: Path) -> int:
    """Remove a cell's folder and what a killed run left of its scratch; return past attempts.

    Raises:
        OSError: the folder cannot be removed.
    """
    attempts = [_attempts(folder, name) for name in (RESULT_FILE, PREVIOUS_FILE)]
    attempts.append(_earlier_attempts(folder))
    drop_scratch(folder)
    if folder.is_dir():
        shutil.rmtree(folder)
    elif folder.exists():
        folder.unlink()
    return max(attempts)


def retire_result(folder: Path) -> None:
    """Make a finished cell an unfinished one, so that an interrupted rerun can be gone on with."""
    with suppress(FileNotFoundError):
        (folder / RESULT_FILE).replace(folder / PREVIOUS_FILE)


def _attempts(folder: Path, name: str) -> int:
    try:
        old = read_result(folder, name)
    except ResultError:
        return 0
    return 0 if old is None else old.attempt


def _earlier_attempts(folder: Path) -> int:
    """Return how many attempts had a result before the one that was interrupted."""
    try:
        told = json.loads((folder / CELL_FILE).read_text(encoding="utf-8"))
        return int(told[EARLIER])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def drop_scratch(folder: Path) -> None:
    """Remove the scratch folder that a cell's folder has noted, if it is one of ours."""
    noted = folder / SCRATCH_FILE
    if not noted.is_file():
        return
    scratch = Path(noted.read_text(encoding="utf-8", errors="replace"))
    if scratch.name.startswith(_scratch_prefix(folder)):
        shutil.rmtree(scratch, ignore_errors=True)
    noted.unlink()


def find_finished(folder: Path, plant: str | None, rerun: Rerun) -> CellResult | None:
    """Return an earlier result that may be kept: readable, of the same plant, not to run again."""
    try:
        old = read_result(folder)
    except ResultError:  # torn, or of another version: as good as none
        return None
    if old is None or rerun == "all" or old.plant != plant or old.cell_id != folder.name:
        return None
    if old.status is Status.SKIPPED:  # what was missing may be there by now
        return None
    return None if rerun == "failed" and old.status is not Status.PASSED else old


def read_tail(log: Path) -> str:
    """Return the last lines of a worker's output, however long it is, whatever bytes it holds."""
    try:
        with log.open("rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - TAIL_BYTES))
            text = handle.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-TAIL_LINES:])


def _scratch_prefix(folder: Path) -> str:
    return f"mudpuppy-{folder.name}-"
