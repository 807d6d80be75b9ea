"""From packed levels to dense values: one look-up for two weights, one product with the scales.

A table of 256 entries holds the two levels of every byte side by side, so that a single
`index_select` writes two finished numbers, without a shift or a mask. Rows are worked on some at a
time, so that indices and results stay in the processor's cache.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mudpuppy.quant.workspace import Space, room_for

CHUNK = 1 << 18
"""Weights that are looked up at once on a processor."""
_PAIR = {2: torch.int32, 4: torch.int64}
"""Integers that hold two numbers of so many bytes."""


def room(columns: int) -> int:
    """Return the bytes of workspace that `expand` takes for rows of so many columns."""
    chunk = _rows_at_once(columns) * (columns + 1)
    return room_for((chunk, torch.int32), (chunk, torch.float32))


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
    pairs = _pairs_of(table.levels, work, out)
    values = scales.to(work)
    width = 2 * qweight.shape[1]
    index = space.take(step * width // 2, torch.int32)
    in_place = direct and width == columns and out.is_contiguous()
    spare = None if in_place else space.take(step * width, work).view(step, width)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        target = out[start:stop] if spare is None else spare[: stop - start]
        part = index[: (stop - start) * width // 2]
        part.view(stop - start, -1).copy_(qweight[start:stop])
        torch.index_select(pairs, 0, part, out=target.view(-1).view(_PAIR[work.itemsize]))
        _scale(target[:, :columns], values[start:stop], block)
        if spare is not None:
            out[start:stop].copy_(target[:, :columns])


def _scale(dense: Tensor, scales: Tensor, block: int) -> None:
    """Multiply levels (rows, columns) by their scales, in place."""
    columns = dense.shape[1]
    whole = columns // block
    if whole:
        view = dense[:, : whole * block].view(-1, whole, block)
        view.mul_(scales[:, :whole].unsqueeze(2))
    if whole * block < columns:
        dense[:, whole * block :].mul_(scales[:, whole : whole + 1])


def _pairs_of(levels: tuple[float, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Return the levels of both halves of every byte, as integers of twice the size."""
    if type(like) is not Tensor:  # it stands for a tensor without memory: nothing to keep
        return _make_pairs(levels, dtype, like.device)
    return _kept_pairs(levels, dtype, like.device)


def _make_pairs(levels: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it is kept, and must serve everywhere
        values = torch.tensor(levels, dtype=torch.float32)
        byte = torch.arange(256)
        both = torch.stack((values[byte & 15], values[byte >> 4]), dim=1)
        return both.to(dtype).view(_PAIR[dtype.itemsize]).view(256).to(device)


_kept_pairs = lru_cache(maxsize=64)(_make_pairs)
