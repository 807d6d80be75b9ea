"""What a stay in few bits does to values, for each of the engine's formats, in numpy.

Written from the definitions (docs of `mudpuppy.quant.formats`), not from the engine's code: rows
are cut into blocks, the last of which may be short; a block has one scale; a value is its level
times that scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from harness.evidence.values.arrays import Floats
from harness.evidence.values.rounding import round_to

INT4, NF4, MXFP4 = "int4-symmetric-blockwise", "nf4-blockwise", "mxfp4-blockwise"
INT8 = "int8-symmetric-blockwise"
"""Schemes as provenance names them."""
MOST = {INT4: np.float32(7), INT8: np.float32(127)}
"""Largest level of the schemes whose levels are evenly spaced."""
SCHEMES = (INT4, NF4, MXFP4, INT8)
"""All of them."""
MOST_SEARCHED = 256
"""Scales that are tried for a block at most."""
SEARCHED = (0.80, 1.04)
"""Shares of the full scale between which scales are searched."""
_BF16_MAX = np.float32(3.3895313892515355e38)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a base was held in few bits."""

    scheme: str
    """One of the schemes above."""
    block_size: int
    """Columns that share a scale."""
    search: int = 0
    """Scales that were tried besides."""


def packing_of(origin: dict[str, Any]) -> Packing | None:
    """Return how provenance says that the base was packed; None if it was not, or is not known."""
    said = origin.get("quantisation")
    if not isinstance(said, dict) or said.get("scheme") not in SCHEMES:
        return None
    size: Any = said.get("block_size")
    search: Any = said.get("search", 0)
    is_known = type(size) is int and type(search) is int and 0 <= search <= MOST_SEARCHED
    if not is_known or not 1 <= size <= 1 << 20:
        return None
    return Packing(scheme=said["scheme"], block_size=size, search=search)


def repack(values: Floats, packing: Packing) -> Floats:
    """Return a float32 matrix (out, in) after packing and unpacking."""
    rows, columns = values.shape
    size = packing.block_size
    padded = np.pad(values, ((0, 0), (0, -columns % size))).reshape(-1, size)
    with np.errstate(over="ignore", invalid="ignore"):
        dense = _in_mxfp4(padded) if packing.scheme == MXFP4 else _in_levels(padded, packing)
    made: Floats = dense.reshape(rows, -1)[:, :columns]
    return made


def _make_nf4_levels() -> Floats:
    """Return the quantiles of QLoRA (arXiv 2305.14314), on bfloat16's grid."""
    outer = 1 - (1 / 30 + 1 / 32) / 2
    inverse = NormalDist().inv_cdf
    upper = [inverse(p) for p in np.linspace(0.5, outer, 9)[1:]]
    lower = [-inverse(p) for p in np.linspace(0.5, outer, 8)[1:]]
    levels = np.array(sorted([*lower, 0.0, *upper])) / max(upper)
    return round_to(levels.astype(np.float32), "BF16")


_NF4_LEVELS = _make_nf4_levels()
_NF4_BORDERS = (_NF4_LEVELS[1:] + _NF4_LEVELS[:-1]) / np.float32(2)


def _nearest(scheme: str, values: Floats) -> Floats:
    """Return the nearest levels of values at scale 1."""
    if scheme in MOST:
        return np.clip(np.rint(values), -MOST[scheme], MOST[scheme])
    found: Floats = _NF4_LEVELS[np.searchsorted(_NF4_BORDERS, values)]
    return found


def _store(scheme: str, scales: Floats) -> Floats:
    """Return scales as they are after they were stored: those of NF4 are cut, not rounded."""
    if scheme in MOST:
        return scales
    bits = np.minimum(scales, _BF16_MAX).astype(np.float32).view(np.uint32)
    cut: Floats = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    return cut


def _in_levels(blocks: Floats, packing: Packing) -> Floats:
    """Return blocks whose scale is a number: absmax over the largest level, or a searched one."""
    scheme = packing.scheme
    peak = np.abs(blocks).max(axis=1, keepdims=True)
    full = peak / MOST[scheme] if scheme in MOST else peak
    best: Floats = _store(scheme, full)
    unit = _nonzero(full)
    if packing.search:
        shares = blocks / unit
        least = _error(scheme, shares, best / unit)
        first, last = SEARCHED
        for step in range(packing.search):
            share = np.float32(first + (last - first) * (step + 0.5) / packing.search)
            tried = _store(scheme, full * share)
            error = _error(scheme, shares, tried / unit)
            best = np.where(error < least, tried, best).astype(np.float32)
            least = np.minimum(error, least)
    # levels of a scale of 0 are 0
    return _nearest(scheme, blocks / _nonzero(best)) * best


def _nonzero(divisor: Floats) -> Floats:
    """Return divisors with 1 in the place of 0."""
    return np.where(divisor == 0, np.float32(1), divisor).astype(np.float32)


def _error(scheme: str, shares: Floats, ratio: Floats) -> Floats:
    """Return squared errors (n, 1) in units of the full scale."""
    levels = _nearest(scheme, shares / _nonzero(ratio))
    return _sum_pairwise((shares - levels * ratio) ** 2)


def _sum_pairwise(values: Floats) -> Floats:
    """Return the sums of rows: second half added to the first, until one number is left."""
    length = 1 << (values.shape[1] - 1).bit_length()
    values = np.pad(values, ((0, 0), (0, length - values.shape[1])))
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        values = values[:, :half] + values[:, half:]
    return values


def _in_mxfp4(blocks: Floats) -> Floats:
    """Return blocks of E2M1 numbers with the better of two powers of two."""
    peak = np.abs(blocks).max(axis=1, keepdims=True)
    exponent = np.where(peak == 0, 0, np.frexp(peak)[1] - 3)
    low = np.clip(exponent, -127, 125)
    made, errors = [], []
    for tried in (low, np.minimum(low + 1, 125)):
        size = np.abs(blocks) / np.ldexp(np.float32(1), tried)
        spacing = np.where(size < 2, 0.5, np.where(size < 4, 1.0, 2.0)).astype(np.float32)
        level = np.minimum(np.rint(size / spacing) * spacing, np.float32(6))
        made.append(np.copysign(np.ldexp(level, tried), blocks))
        errors.append(_sum_pairwise((size - level) ** 2) * np.float32(4.0) ** (tried - low))
    better: Floats = np.where(errors[1] < errors[0], made[1], made[0])
    return better.astype(np.float32)
