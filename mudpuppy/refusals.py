"""What the machine refuses, a write or memory, turned into errors that say so."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from mudpuppy.errors import EngineError

NO_CPU_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""What torch says, as a plain `RuntimeError`, where the host refuses memory."""
CUT_SHORT = ("inline_container.cc", "PytorchStreamWriter failed", "iostream error")
"""What `torch.save` says, as a plain `RuntimeError`, where a file cannot be written to its end."""
FULL_BYTES = 1 << 16
"""Free space below which a disk counts as full."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the host or a device refused memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and NO_CPU_MEMORY in str(error)


@contextmanager
def telling_of_memory(what: str, hint: str) -> Iterator[None]:
    """Turn memory that was refused into an error that says so.

    Args:
        what: who ran out, as the message begins: `lora`, `the merge`.
        hint: what to change.

    Raises:
        EngineError: memory was refused inside the block.
    """
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        kind = "device memory" if isinstance(error, torch.OutOfMemoryError) else "memory"
        reason = (str(error).splitlines() or [""])[0].rpartition("] . ")[2]
        raise EngineError(
            f"{what} ran out of {kind}{f': {reason}' if reason else ''}", hint=hint
        ) from error


@contextmanager
def telling_of_failed_writes(output: Path) -> Iterator[None]:
    """Turn a full disk, or whatever else keeps a run from writing, into an error that says so.

    Raises:
        EngineError: an operation on a file failed inside the block.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _why_not_written(error, output)
        if not reason:
            raise
        raise EngineError(
            f"the run cannot go on: {reason} (while writing to {output})",
            hint="see whether the disk is full (df) or a limit is reached (ulimit -f, quota)",
        ) from error


def _why_not_written(error: Exception, output: Path) -> str:
    """Return why a file could not be written, or nothing where that is not what happened."""
    if is_out_of_memory(error):
        return ""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError):
        return str(error)
    if not any(mark in str(error) for mark in CUT_SHORT):
        return ""
    is_full = output.exists() and shutil.disk_usage(output).free < FULL_BYTES
    return os.strerror(errno.ENOSPC) if is_full else "a file could not be written to its end"
