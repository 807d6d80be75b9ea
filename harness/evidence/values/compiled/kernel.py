"""The compiled scan.c as the pass over all values sees it: a span of a tensor in, findings out."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np

from harness.evidence.values.bits import FORMS, Bytes, Extremes
from harness.evidence.values.compiled.abi import ENDED, KINDS, Task, open_library
from harness.evidence.values.reading import Slice, too_short, unreadable
from harness.evidence.values.rowsums import RowSums

CHUNK_BYTES = 1 << 18
"""Bytes that are read at once: less than the numpy path reads, since a call costs next to nothing
here, and the second cache of most processors holds them."""
_ALIGNMENT = 64


class ScanKernel:
    """The library of scan.c; one object for all threads, of which each has a buffer of its own.

    Args:
        library: the compiled file.

    Raises:
        OSError: it cannot be loaded.
    """

    def __init__(self, library: Path) -> None:
        self._library = open_library(str(library))
        self._local = threading.local()

    def takes(self, part: Slice) -> bool:
        """Return whether it can read a part: values of a known type, not blocks, and whole ones."""
        dtype = part.tensor.dtype
        if dtype not in KINDS and dtype != "C64":
            return False
        width: int = FORMS[dtype].unsigned.itemsize
        return part.unit % width == 0 and (part.stop - part.start) % width == 0

    def read(self, handle: int, part: Slice) -> tuple[Extremes, list[RowSums]]:
        """Return what a part of a tensor holds: its extremes, and the sums over its rows, if any.

        Args:
            handle: the open file.
            part: one that `takes` knows.

        Raises:
            Missing: the file cannot be read, or ends inside the tensor.
        """
        tensor, rows = part.tensor, part.rows
        step = max(part.unit, CHUNK_BYTES // part.unit * part.unit)
        squares, marks = np.empty(rows, np.float32), np.empty(rows, np.uint64)
        zero = np.empty(rows, np.bool_)
        task = Task(
            self._buffer(step).ctypes.data,
            squares.ctypes.data if rows else None,
            marks.ctypes.data,
            zero.ctypes.data,
            tensor.start + part.start,
            part.stop - part.start,
            part.unit,
            step,
            handle,
            KINDS["F32" if tensor.dtype == "C64" else tensor.dtype],
        )
        self._library.mudpuppy_scan(task)
        if task.error == ENDED:
            raise too_short(tensor)
        if task.error:
            raise unreadable(tensor, os.strerror(task.error))
        sums = RowSums(squares=squares, marks=marks, zero=zero, zeros=task.zeros)
        return _make_extremes(tensor.dtype, task), [sums] if rows else []

    def _buffer(self, size: int) -> Bytes:
        """Return this thread's buffer, at least `size` bytes long."""
        held: Bytes | None = getattr(self._local, "buffer", None)
        if held is None or held.size < size:
            room = np.empty(size + _ALIGNMENT, np.uint8)
            held = room[-room.ctypes.data % _ALIGNMENT :][:size]
            self._local.buffer = held
        return held


def _make_extremes(dtype: str, task: Task) -> Extremes:
    found = Extremes(dtype)
    found.nonfinite = task.nonfinite
    if task.seen:
        found.low, found.high = task.low, task.high
    return found
