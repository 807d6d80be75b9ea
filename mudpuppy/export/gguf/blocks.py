"""Read planned tensors block by block, in the order and with the values that they are written with.

Tensors are read, not mapped, and with numpy alone: importing torch takes longer than converting
half a gigabyte.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mudpuppy.export.gguf.refusals import ExportRefused
from mudpuppy.export.gguf.tensors import Part, Planned
from mudpuppy.safefile import ITEM_BYTES, TensorEntry

Rows = NDArray[Any]
"""Rows of a tensor: float32, float16, or the bits of bf16 as uint16; (rows, columns)."""
RAW: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""What stored values are read as."""
BLOCK_BYTES = 2 << 20
"""Bytes of a block as fp32."""
EXPONENTS = {"F32": 0x7F80 << 16, "F16": 0x7C00, "BF16": 0x7F80}
"""Bits of the exponent, all of which are set in infinities and in what is no number."""
BITS: dict[int, Any] = {4: np.uint32, 2: np.uint16}


PIECE = 1 << 18
"""Values that are looked at together, so that what is made of them stays near the processor."""


class Source:
    """Reads rows of stored tensors into one buffer; keeps the files open."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._buffer = np.empty(0, np.uint8)

    def close(self) -> None:
        """Close every file."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def read(self, entry: TensorEntry, first: int, rows: int) -> Rows:
        """Return some rows as they are stored, (rows, columns); valid until the next are read.

        Fresh memory for every block would be paid for page by page.

        Raises:
            OSError: the file cannot be read, or became shorter.
        """
        path = str(entry.file)
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        columns = entry.shape[-1]
        row = columns * ITEM_BYTES[entry.dtype]
        if len(self._buffer) < rows * row:
            self._buffer = np.empty(rows * row, np.uint8)
        raw = self._buffer[: rows * row]
        view, place = raw.data, entry.start + first * row
        done = 0
        while done < len(view):
            count = os.preadv(self._files[path], [view[done:]], place + done)
            if count == 0:
                raise OSError(f"{path} became shorter while it was read")
            done += count
        found: Rows = raw.view(RAW[entry.dtype]).reshape(rows, columns)
        return found


def read_blocks(planned: Planned, source: Source) -> Iterator[Rows]:
    """Yield the rows of a tensor in order, about `BLOCK_BYTES` at a time; each until the next.

    What is stored as bf16 comes as its bits, fp16 as it is, and everything else as fp32.

    Raises:
        ExportRefused: MP-X06, a value is no finite number.
        OSError: a file cannot be read.
    """
    if not planned.parts:
        yield np.asarray(planned.values, np.float32).reshape(-1, planned.columns)
        return
    for part in planned.parts:
        for first, rows in _spans(planned, part):
            block = source.read(part.entry, first, rows)
            dtype = part.entry.dtype
            if dtype == "F64":
                with np.errstate(over="ignore"):  # then it is infinite, and refused
                    block, dtype = block.astype(np.float32), "F32"
            if not is_finite(block, dtype):
                raise ExportRefused(
                    "MP-X06",
                    f"the tensor {part.entry.name} holds values that are no finite numbers",
                    hint=f"mudpuppy-doctor {part.entry.file.parent}",
                )
            if planned.heads:
                block = turn(block, planned.heads * rows // part.rows, len(planned.shape) == 1)
            yield shift(block, planned.shift) if planned.shift else block


def _spans(planned: Planned, part: Part) -> Iterator[tuple[int, int]]:
    """Yield first row and number of rows of each block of a part; whole heads where it has some."""
    unit = part.rows // planned.heads if planned.heads and len(planned.shape) > 1 else 1
    step = max(1, BLOCK_BYTES // (4 * max(1, planned.columns)) // unit) * unit
    for start in range(0, part.rows, step):
        yield part.first + start, min(step, part.rows - start)


def is_finite(block: Rows, dtype: str) -> bool:
    """Return whether all values are numbers; by their bits, which is several times faster."""
    bits = block.reshape(-1).view(BITS[block.itemsize])
    exponent = bits.dtype.type(EXPONENTS[dtype])
    return all(
        (bits[start : start + PIECE] & exponent).max() < exponent
        for start in range(0, len(bits), PIECE)
    )


def turn(block: Rows, heads: int, is_vector: bool) -> Rows:
    """Reorder the rows of every head, or a vector's values: first halves and second halves in turn.

    transformers rotates the first half of a head against the second, llama.cpp neighbours.
    """
    size = block.shape[-1] if is_vector else block.shape[0]
    rest = () if is_vector else block.shape[1:]
    halves = block.reshape(heads, 2, size // heads // 2, *rest)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(block.shape)


def shift(block: Rows, amount: float) -> Rows:
    """Add to every value as llama.cpp's converter does: in fp16 where that is stored, else fp32."""
    computed = widen(block) if block.dtype == np.uint16 else block
    shifted: Rows = computed + computed.dtype.type(amount)
    return shifted


def widen(block: Rows) -> Rows:
    """Return a block as fp32, exactly."""
    if block.dtype != np.uint16:
        return block.astype(np.float32, copy=False)
    wide = block.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)
