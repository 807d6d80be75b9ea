"""Scales of quantised layers: read in blocks, held against what every format asks of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.evidence.values.arrays import iterate_rows, read_bytes
from harness.evidence.values.decodable import can_decode
from harness.facts.checkpoint import Tensor
from harness.facts.quantised import Flaw

MOST_BYTES = 1 << 26
"""Parts of a layer up to this size are read whole; the largest real scales have some 50 MB."""


@dataclass(frozen=True, kw_only=True)
class ScaleCount:
    """What one pass over scales found."""

    nonfinite: int
    """NaN and infinities."""
    negative: int
    """Scales below zero."""
    zero: int
    """Scales that are zero."""


def count_scales(folder: Path, tensor: Tensor) -> ScaleCount:
    """Count the scales that no writer makes, and those that are zero."""
    nonfinite = negative = zero = 0
    for block in iterate_rows(folder, tensor):
        nonfinite += block.size - int(np.isfinite(block).sum())
        with np.errstate(invalid="ignore"):
            negative += int(np.count_nonzero(block < 0))
        zero += int(np.count_nonzero(block == 0))
    return ScaleCount(nonfinite=nonfinite, negative=negative, zero=zero)


def mean_scale(folder: Path, tensor: Tensor) -> float | None:
    """Return the mean magnitude of the finite scales; None without any."""
    total, count = 0.0, 0
    for block in iterate_rows(folder, tensor):
        finite = block[np.isfinite(block)]
        total += float(np.abs(finite).sum(dtype=np.float64))
        count += finite.size
    return total / count if count else None


def judge_scales(
    folder: Path, tensor: Tensor, *, what: str = "scales", may_be_negative: bool = False
) -> Iterator[Flaw]:
    """Yield what is wrong with scales of any format, zeros excepted."""
    if not can_decode(tensor):
        return
    found = count_scales(folder, tensor)
    if found.nonfinite:
        yield Flaw(
            kind="scale",
            what=f"{what} that are NaN or infinite",
            tensor=tensor.name,
            found=found.nonfinite,
            expected=0,
        )
    if found.negative and not may_be_negative:
        yield Flaw(
            kind="scale",
            what=f"{what} below zero",
            tensor=tensor.name,
            found=found.negative,
            expected=0,
        )


def shape_flaw(tensor: Tensor, expected: tuple[int, ...], why: str) -> Flaw:
    """Return that a part has another shape than it must have."""
    return Flaw(
        kind="shape",
        what=f"shape, {why}",
        tensor=tensor.name,
        found=list(tensor.shape),
        expected=list(expected),
    )


def missing_part(name: str, part: str) -> Flaw:
    """Return that a layer lacks a part."""
    return Flaw(
        kind="part",
        what="part of a quantised layer",
        tensor=f"{name}.{part}",
        found="absent",
        expected="present",
    )


def read_words(folder: Path, tensor: Tensor, first: int, last: int) -> NDArray[np.uint32]:
    """Return rows `first:last` of a matrix of 32-bit words."""
    width = tensor.shape[1]
    raw = read_bytes(folder, tensor, first * width * 4, last * width * 4)
    return raw.view("<u4").reshape(last - first, width)
