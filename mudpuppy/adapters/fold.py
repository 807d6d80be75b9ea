"""Make one merged tensor, row block by row block: read, add scale * BA in fp32, round once.

The sums are PEFT's, bit for bit on the same machine: `(B @ A) * scale` in fp32, added to the weight
in fp32, and rounded to the weight's type. A matrix product of some of the rows has the bits of the
whole product where the block starts at a multiple of 8 rows (16 where the product is turned) and is
not nearly empty; measured with MKL, whose kernels change with the number of rows. So blocks are
multiples of `ALIGN` rows, and what is left over goes with the last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mudpuppy.adapters.codes import NOT_FINITE
from mudpuppy.adapters.merge_plan import LowRank, Output, PackedEntry
from mudpuppy.errors import EngineError
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.formats.interface import Format, Packed
from mudpuppy.safefile import TensorEntry
from mudpuppy.stored import FLOATS, Reader

BLOCK_BYTES = 1 << 22
"""Bytes of fp32 that are worked on at once: they stay in the processor's cache."""
ALIGN = 64
"""Rows that a block is a multiple of."""


@dataclass
class Workspace:
    """Buffers that every tensor reuses, so that memory does not grow with the model."""

    reader: Reader
    """Where tensors are read from."""
    seen_dtype: torch.dtype | None = None
    """Type in which a 4-bit base was held before it was quantised."""
    _buffers: dict[str, Tensor] = field(default_factory=dict)

    def buffer(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        """Return a flat buffer of `count` elements with any content."""
        size = count * dtype.itemsize
        held = self._buffers.get(name)
        if held is None or held.numel() < size:
            held = self._buffers[name] = torch.empty(size, dtype=torch.uint8)
        return held[:size].view(dtype)


def row_blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Yield first and last row + 1 of every block; the last is up to `ALIGN` rows longer."""
    step = max(ALIGN, BLOCK_BYTES // (4 * max(columns, 1)) // ALIGN * ALIGN)
    start = 0
    while start < rows:
        stop = start + step if rows - start >= step + ALIGN else rows
        yield start, stop
        start = stop


def fold(output: Output, dtype: str, work: Workspace) -> Iterator[memoryview]:
    """Yield the bytes of one merged tensor in the type `dtype`, block by block.

    A block is valid until the next one is asked for.

    Raises:
        EngineError: MP-E09, a value is not finite.
        OSError: a file cannot be read.
    """
    if output.source.dtype not in FLOATS:
        yield from _copy(output.source, work)
        return
    if output.is_copied or output.bias is not None:
        yield from _fold_flat(output, dtype, work)
        return
    yield from _fold_rows(output, dtype, work)


def _copy(entry: TensorEntry, work: Workspace) -> Iterator[memoryview]:
    for start in range(0, entry.size, BLOCK_BYTES):
        raw = work.buffer("raw", min(BLOCK_BYTES, entry.size - start), torch.uint8)
        work.reader.read_into(entry, start, raw)
        yield raw.numpy().data


def _fold_flat(output: Output, dtype: str, work: Workspace) -> Iterator[memoryview]:
    """Copy, convert or add a bias; the shape does not matter."""
    source = output.source
    item = FLOATS[source.dtype].itemsize
    added = None
    if output.bias is not None:
        added = work.reader.read(output.bias[0]) * output.bias[1]
    step = BLOCK_BYTES // 4
    for start in range(0, source.size // item, step):
        count = min(step, source.size // item - start)
        kept = source.dtype if added is None else output.home.dtype
        block = _load(source, start, count, kept, work)
        if added is not None:
            block = block.float() + added[start : start + count]
        yield _round(block, dtype, output.name, work)


def _fold_rows(output: Output, dtype: str, work: Workspace) -> Iterator[memoryview]:
    for _, _, block in merged_rows(output, dtype, work):
        yield _round(block, dtype, output.name, work)


def merged_rows(
    output: Output, dtype: str, work: Workspace
) -> Iterator[tuple[tuple[int, int], Tensor, Tensor]]:
    """Yield first and last row + 1 of every block, what the adapter saw there, and the merged rows.

    Both are (stop - start, columns), and valid until the next block is asked for. Where nothing
    changes, they are the same tensor.
    """
    rows, columns = output.source.shape
    change = None if output.change is None else _Change(output, dtype, work)
    if change is not None and change.needs_lengths:
        for start, stop in row_blocks(rows, columns):
            change.measure(_base_block(output, start, stop, work), start, stop)
    new = None if output.rows is None else work.reader.read(output.rows[1])
    for start, stop in row_blocks(rows, columns):
        seen = block = _base_block(output, start, stop, work)
        if change is not None:
            block = change.add_to(block, start, stop)
        if new is not None and output.rows is not None:
            block = block.float()
            for row, value in zip(output.rows[0], new, strict=True):
                if start <= row < stop:
                    block[row - start] = value
        yield (start, stop), seen, block


def _load(entry: TensorEntry, start: int, count: int, kept: str, work: Workspace) -> Tensor:
    """Return `count` elements in the base's own type `kept`, as loading the base would."""
    kind = FLOATS[entry.dtype]
    raw = work.buffer("raw", count * kind.itemsize, torch.uint8)
    work.reader.read_into(entry, start * kind.itemsize, raw)
    block = raw.view(kind)
    return block if entry.dtype == kept else block.to(FLOATS[kept])


def _base_block(output: Output, start: int, stop: int, work: Workspace) -> Tensor:
    """Return rows of the weight that the adapter saw, (stop - start, columns)."""
    found = packed_rows(output, start, stop, work)
    if found is not None:
        form, packed = found
        dense: Tensor = form.dequantise(packed)
        return dense
    return _plain_block(output, start, stop, work)


def packed_rows(
    output: Output, start: int, stop: int, work: Workspace
) -> tuple[Format, Packed] | None:
    """Return rows of a base that the adapter saw in few bits, as they were held; else None."""
    if isinstance(output.source, PackedEntry):
        layer = output.source.layer
        return layer.format, layer.read(work.reader, start, stop)
    packing = output.packing
    if packing is None:
        return None
    block = _plain_block(output, start, stop, work)
    held = block if work.seen_dtype is None else block.to(work.seen_dtype)
    form = FORMATS[packing.format]
    return form, form.quantise(held, packing.block_size, packing.search)


def _plain_block(output: Output, start: int, stop: int, work: Workspace) -> Tensor:
    columns = output.source.shape[1]
    count = (stop - start) * columns
    block = _load(output.source, start * columns, count, output.home.dtype, work)
    return block.view(stop - start, columns)


class _Change:
    """scale * BA of one weight, some rows at a time."""

    def __init__(self, output: Output, dtype: str, work: Workspace) -> None:
        assert output.change is not None
        self.low_rank: LowRank = output.change
        self.work = work
        self.a = work.reader.read(self.low_rank.a)
        self.b = work.reader.read(self.low_rank.b)
        # where another type is asked for, there is nothing of PEFT's to be equal to
        is_rounded = self.low_rank.is_rounded and dtype == output.home.dtype
        self.first = FLOATS[dtype] if is_rounded else torch.float32
        self.magnitude = None
        if self.low_rank.magnitude is not None:
            self.magnitude = work.reader.read(self.low_rank.magnitude)
        self._squares = torch.zeros(output.source.shape[1], dtype=torch.float64)

    @property
    def needs_lengths(self) -> bool:
        """Whether DoRA's lengths run down the columns, so that all rows must be seen first."""
        return self.magnitude is not None and self.low_rank.is_transposed

    def _delta(self, start: int, stop: int) -> Tensor:
        """Return the rows of scale * BA in fp32."""
        if self.low_rank.is_transposed:
            delta = torch.mm(self.b, self.a[:, start:stop]).T
        else:
            count = (stop - start) * self.a.shape[1]
            delta = self.work.buffer("delta", count, torch.float32).view(stop - start, -1)
            torch.mm(self.b[start:stop], self.a, out=delta)
        delta.mul_(self.low_rank.scale)
        return delta if self.first == torch.float32 else delta.to(self.first).float()

    def measure(self, block: Tensor, start: int, stop: int) -> None:
        """Add the squares of the merged rows to the lengths of the columns."""
        self._squares += (self._delta(start, stop) + block).double().square_().sum(0)

    def add_to(self, block: Tensor, start: int, stop: int) -> Tensor:
        """Return the merged rows in fp32."""
        total: Tensor = self._delta(start, stop).add_(block)
        if self.magnitude is None:
            return total
        if self.low_rank.is_transposed:
            return total.mul_((self.magnitude / self._squares.sqrt().float()).view(1, -1))
        lengths = torch.linalg.norm(total, dim=1)
        return total.mul_((self.magnitude[start:stop] / lengths).view(-1, 1))


def _round(block: Tensor, dtype: str, name: str, work: Workspace) -> memoryview:
    """Return the bytes of a block in its final type, after a look for what is not finite.

    Raises:
        EngineError: MP-E09, something is not finite.
    """
    kind = FLOATS[dtype]
    if block.dtype != kind or not block.is_contiguous():
        rounded = work.buffer("rounded", block.numel(), kind).view(block.shape)
        rounded.copy_(block)
    else:
        rounded = block
    flat = rounded.reshape(-1)
    # one infinite or NaN value makes the sum so; a sum may overflow too, and then all are looked at
    if not bool(torch.isfinite(flat.sum())) and not bool(torch.isfinite(flat).all()):
        raise EngineError(
            f"the merged tensor {name} is not finite in {dtype}",
            code=NOT_FINITE,
            hint="merge in a wider type (--precision fp32), or ask mudpuppy-doctor",
        )
    return flat.view(torch.uint8).numpy().data
