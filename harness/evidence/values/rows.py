"""What the sums over the rows of one tensor say: dead rows and columns, repeated rows, its size."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.evidence.values.arrays import read_bytes
from harness.evidence.values.bits import FORMS
from harness.evidence.values.rowsums import ROW_LIMIT_BYTES, shape_rows
from harness.evidence.values.scan import Found
from harness.facts.checkpoint import Tensor
from harness.facts.weights import KEPT, RowFacts

MOST_SUSPECTS = 4096
"""Rows that are read again to see whether they are equal; of more, these stand for the rest."""


def describe_rows(folder: Path, found: Found) -> RowFacts | None:
    """Return rows, columns and size of a tensor, or None where its rows were not summed.

    Raises:
        Missing: rows that had to be read again cannot be.
    """
    form = shape_rows(found.tensor)
    if not found.sums or form is None or found.tensor.dtype not in FORMS:
        return None
    squares = np.concatenate([one.squares for one in found.sums])
    zero = np.concatenate([one.zero for one in found.sums])
    zeros = sum(one.zeros for one in found.sums)
    rows, width = squares.size, form[1]
    total = float(squares.sum(dtype=np.float64))
    is_finite = np.isfinite(total) and not found.extremes.nonfinite
    dead = np.flatnonzero(zero)
    marks = np.concatenate([one.marks for one in found.sums])
    whole = found.is_complete
    return RowFacts(
        tensor=found.tensor,
        rows=rows,
        width=width,
        rms=(total / (rows * width)) ** 0.5 if is_finite else float("inf"),
        zeros=zeros,
        zero_rows=tuple(int(row) for row in dead[:KEPT]) if whole else (),
        zero_row_count=int(dead.size),
        zero_columns=_count_zero_columns(folder, found.tensor, zero, zeros) if whole else 0,
        repeated=_count_repeated(folder, found.tensor, marks, zero) if whole else 0,
        complete=whole,
    )


def _count_repeated(
    folder: Path, tensor: Tensor, marks: NDArray[np.uint64], zero: NDArray[np.bool_]
) -> int:
    """Return how many rows equal an earlier one; only rows with the same mark are read again."""
    if marks.size < 2:
        return 0
    found, where, counts = np.unique(marks, return_inverse=True, return_counts=True)
    if found.size == marks.size:
        return 0
    suspects = np.flatnonzero((counts[where] > 1) & ~zero)[:MOST_SUSPECTS]
    seen: set[bytes] = set()
    again = 0
    size = (tensor.end - tensor.start) // marks.size
    for row in suspects:
        raw = read_bytes(folder, tensor, int(row) * size, (int(row) + 1) * size)
        digest = hashlib.blake2b(raw.data, digest_size=16).digest()
        again += digest in seen
        seen.add(digest)
    return again


def _count_zero_columns(folder: Path, tensor: Tensor, zero: NDArray[np.bool_], zeros: int) -> int:
    """Return how many columns are zero all through; reads again only if zeros are that many."""
    rows = zero.size
    size = (tensor.end - tensor.start) // rows
    width = tensor.elements // rows
    alive = rows - int(np.count_nonzero(zero))
    if alive < 2 or zeros - (rows - alive) * width < alive:
        return 0
    step = max(1, ROW_LIMIT_BYTES // size)
    held = np.zeros(width, np.bool_)
    for first in range(0, rows, step):
        last = min(rows, first + step)
        raw = read_bytes(folder, tensor, first * size, last * size)
        held |= raw.view(FORMS[tensor.dtype].unsigned).reshape(last - first, width).any(axis=0)
        if held.all():
            return 0
    return int(np.count_nonzero(~held))
