"""Take a part of a selection: a sample that a seed draws, or one of several shards."""

from __future__ import annotations

import hashlib
import re

from harness.matrix import Cell
from harness.selection import Selection
from mudpuppy.errors import UsageError


def take_sample(selection: Selection, count: int, seed: str) -> Selection:
    """Keep `count` of the chosen cells, drawn by the seed: others with another, the same again.

    A cell is drawn by its id, so that a matrix that grows keeps most of a sample.

    Raises:
        UsageError: the count is below 1.
    """
    if count < 1:
        raise UsageError(f"--sample {count}: expected 1 or more cells")
    ranked = sorted(selection.chosen, key=lambda cell: _draw(cell, seed))
    drawn = {cell.cell_id for cell in ranked[:count]}
    return _narrow(selection, drawn, f"left out by --sample {count} --seed {seed}")


def take_shard(selection: Selection, word: str) -> Selection:
    """Keep the cells of one shard, such as `2/8`: by their ids, whatever else is in the matrix.

    Raises:
        UsageError: it is no `i/n` with i from 1 to n, or the shard has no cell.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", word)
    number, shards = (int(part) for part in found.groups()) if found else (0, 0)
    if not 1 <= number <= shards:
        raise UsageError(f"--shard {word}: expected I/N with I from 1 to N, such as 2/8")
    mine = {
        cell.cell_id for cell in selection.chosen if int(cell.cell_id, 16) % shards == number - 1
    }
    if not mine:
        raise UsageError(f"--shard {word}: none of {len(selection.chosen)} cells is in this shard")
    return _narrow(selection, mine, f"left out by --shard {word}")


def _narrow(selection: Selection, kept: set[str], reason: str) -> Selection:
    """Leave out all chosen cells but those with the ids."""
    gone = [(cell, reason) for cell in selection.chosen if cell.cell_id not in kept]
    return Selection(
        chosen=tuple(cell for cell in selection.chosen if cell.cell_id in kept),
        left_out=(*selection.left_out, *gone),
    )


def _draw(cell: Cell, seed: str) -> bytes:
    return hashlib.sha256(f"{seed} {cell.cell_id}".encode()).digest()
