"""From packed levels to dense values: one look-up for several weights, one product with the scales.

A table of 256 entries holds the two levels of every byte side by side, so that a single
`index_select` writes two finished numbers, without a shift or a mask; for numbers of 16 bits one of
65536 entries (512 KiB) writes four. Rows are worked on some at a time, so that indices and results
stay in the processor's cache.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mudpuppy.quant.workspace import Space, room_for

CHUNK = 1 << 19
"""Weights that are looked up at once on a processor."""
_INTEGER = {4: torch.int32, 8: torch.int64}
"""Integers of so many bytes."""


def room(rows: int, columns: int) -> int:
    """Return the bytes of workspace that `expand` takes for a part of this size."""
    chunk = min(rows, _rows_at_once(columns)) * (columns + 1)
    return room_for(((chunk + 1) // 2, torch.int32), (chunk, torch.float32))


def _rows_at_once(columns: int) -> int:
    return max(1, CHUNK // columns)


class Table(NamedTuple):
    """The 16 levels of a format."""

    levels: tuple[float, ...]
    """The value of every nibble at scale 1, float32."""
    is_exact_in: frozenset[torch.dtype]
    """Types beside float32 in which a product of level and scale is rounded once, to that type."""


def expand(
    table: Table, qweight: Tensor, scales: Tensor, block: int, out: Tensor, space: Space
) -> None:
    """Write the values of packed rows into `out`, computed in float32 and rounded once.

    Args:
        table: the levels.
        qweight: uint8, (rows, ceil(columns / 2)).
        scales: float32, (rows, ceil(columns / block)).
        block: columns that share a scale.
        out: (rows, columns), any floating dtype.
        space: where indices and what is not yet rounded may lie.
    """
    rows, columns = out.shape
    step = min(rows, _rows_at_once(columns)) if out.device.type == "cpu" else rows
    direct = out.dtype == torch.float32 or out.dtype in table.is_exact_in
    work = out.dtype if direct else torch.float32
    values = scales.to(work)
    width = 2 * qweight.shape[1]
    # four weights at once where rows are whole words; for wider numbers that table is too large
    word = 2 if work.itemsize == 2 and _has_words(qweight) else 1
    if word == 2:
        qweight = qweight.view(torch.uint16)
    index = space.take(step * qweight.shape[1], torch.int32)
    entries = _entries_of(table.levels, work, word, out)
    is_aligned = out.storage_offset() * out.itemsize % entries.itemsize == 0
    in_place = direct and is_aligned and width == columns and out.is_contiguous()
    spare = None if in_place else space.take(step * width, work).view(step, width)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        target = out[start:stop] if spare is None else spare[: stop - start]
        part = index[: (stop - start) * qweight.shape[1]]
        part.view(stop - start, -1).copy_(qweight[start:stop])
        torch.index_select(entries, 0, part, out=target.view(-1).view(entries.dtype))
        _scale(target[:, :columns], values[start:stop], block)
        if spare is not None:
            out[start:stop].copy_(target[:, :columns])


def expand_bytes(qweight: Tensor, scales: Tensor, block: int, out: Tensor, space: Space) -> None:
    """Write the values of rows whose bytes are their levels, signed; arguments as in `expand`."""
    rows, columns = out.shape
    step = min(rows, _rows_at_once(columns)) if out.device.type == "cpu" else rows
    direct = out.dtype == torch.float32
    spare = None if direct else space.take(step * columns, torch.float32).view(step, columns)
    levels = qweight.view(torch.int8)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        target = out[start:stop] if spare is None else spare[: stop - start]
        target.copy_(levels[start:stop])
        _scale(target, scales[start:stop], block)
        if spare is not None:
            out[start:stop].copy_(target)


def _scale(dense: Tensor, scales: Tensor, block: int) -> None:
    """Multiply levels (rows, columns) by their scales, in place."""
    columns = dense.shape[1]
    whole = columns // block
    if whole:
        view = dense[:, : whole * block].view(-1, whole, block)
        view.mul_(scales[:, :whole].unsqueeze(2))
    if whole * block < columns:
        dense[:, whole * block :].mul_(scales[:, whole : whole + 1])


def _has_words(qweight: Tensor) -> bool:
    """Return whether every row is made of whole words of two bytes."""
    offset, (rows, columns) = qweight.storage_offset(), qweight.stride()
    return columns == 1 and not (qweight.shape[1] % 2 or rows % 2 or offset % 2)


def _entries_of(levels: tuple[float, ...], dtype: torch.dtype, word: int, like: Tensor) -> Tensor:
    """Return the levels of every byte or word side by side, as one integer each."""
    if type(like) is not Tensor:  # it stands for a tensor without memory: nothing to keep
        return _make_entries(levels, dtype, word, like.device)
    return _kept_entries(levels, dtype, word, like.device)


def _make_entries(
    levels: tuple[float, ...], dtype: torch.dtype, word: int, device: torch.device
) -> Tensor:
    with torch.inference_mode(False):  # it is kept, and must serve everywhere
        values = torch.tensor(levels, dtype=torch.float32).to(dtype)
        number = torch.arange(1 << 8 * word)
        nibbles = [values[number >> shift & 15] for shift in range(0, 8 * word, 4)]
        whole = _INTEGER[dtype.itemsize * len(nibbles)]
        return torch.stack(nibbles, dim=1).view(whole).view(-1).to(device)


_kept_entries = lru_cache(maxsize=64)(_make_entries)
