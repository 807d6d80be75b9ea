"""Evidence about the values of every tensor: extremes, what is not finite, zeros, rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.evidence.values.arrays import decode, read_bytes
from harness.evidence.values.bits import FORMS, Bytes, count_trailing_zeros
from harness.evidence.values.rows import describe_rows
from harness.evidence.values.scan import PLACES, Found, scan
from harness.facts.checkpoint import Numbers, Tensor
from harness.facts.weights import RowFacts, Scan

ROW_EVIDENCE = frozenset({"rows", "dead_rows", "odd_layers"})
"""Evidence that needs the sums over rows; without it the pass is several times as fast."""
TAIL_BYTES = 1 << 16
"""Bytes read at once when zeros are counted from the end."""


@provides("weight_scan", Depth.WEIGHTS)
def scan_all(evidence: CheckpointEvidence) -> tuple[dict[str, Numbers], Scan | None]:
    """Read every float tensor once, and return numbers and, if a chosen probe wants them, rows."""
    return _scan_all(evidence, rows=bool(evidence.options.wanted & ROW_EVIDENCE))


@provides("numbers", Depth.WEIGHTS)
def give_numbers(evidence: CheckpointEvidence) -> dict[str, Numbers]:
    """Return extremes, zeros at the end and what is not finite, by tensor name."""
    numbers: dict[str, Numbers] = evidence.get("weight_scan")[0]
    return numbers


@provides("rows", Depth.WEIGHTS)
def give_rows(evidence: CheckpointEvidence) -> Scan:
    """Return what the sums over rows say, by tensor name."""
    found: Scan | None = evidence.get("weight_scan")[1]
    return found or _scan_all(evidence, rows=True)[1] or Scan(rows={})


@provides("sample", Depth.WEIGHTS)
def describe_sample(evidence: CheckpointEvidence) -> str:
    """Return what a clean sample says, as a sentence; empty when all was read."""
    numbers: Mapping[str, Numbers] = evidence.get("numbers")
    sampled = sum(not one.complete for one in numbers.values())
    if not sampled:
        return ""
    missed = 0.99**PLACES
    return (
        f"--quick read {PLACES} places of {sampled} of {len(numbers)} tensors: a fault in 1% of "
        f"the places of one of them would have been seen with {1 - missed:.1%}, a single value not"
    )


def _scan_all(
    evidence: CheckpointEvidence, *, rows: bool
) -> tuple[dict[str, Numbers], Scan | None]:
    wanted: tuple[Tensor, ...] = evidence.get("decodable")
    quick = evidence.options.quick
    total = sum(tensor.end - tensor.start for tensor in wanted)
    if total > 1 << 30 and not quick:
        evidence.options.progress(f"reading {total / 1e9:.1f} GB of weights in {evidence.folder}")
    folder = evidence.folder
    numbers: dict[str, Numbers] = {}
    described: dict[str, RowFacts] = {}
    done = 0
    for found in scan(folder, wanted, rows=rows, quick=quick, seed=evidence.options.seed):
        done += found.tensor.end - found.tensor.start
        evidence.options.scanned(done, total)
        one = _conclude(folder, found)
        if not one.complete and (one.is_zero or one.constant is not None):
            one = measure(folder, one.tensor)  # a sample is no proof of that
        numbers[one.tensor.name] = one
        if rows and (facts := describe_rows(folder, found)) is not None:
            described[one.tensor.name] = facts
    return numbers, Scan(rows=described) if rows else None


def measure(folder: Path, tensor: Tensor) -> Numbers:
    """Scan one float tensor.

    Raises:
        Missing: its file cannot be read or is too short.
    """
    (found,) = scan(folder, [tensor])
    return _conclude(folder, found)


def scan_rows(folder: Path, tensor: Tensor) -> RowFacts | None:
    """Sum the rows of one tensor; None where its type or shape has none.

    Raises:
        Missing: its file cannot be read or is too short.
    """
    for found in scan(folder, [tensor], rows=True):
        return describe_rows(folder, found)
    return None


def _conclude(folder: Path, found: Found) -> Numbers:
    """Turn the keys of extremes into values, and count the zeros at the end."""
    tensor, extremes = found.tensor, found.extremes
    low, high = (
        0.0 if key is None else _value(extremes.bits(key), extremes.dtype)
        for key in (extremes.low, extremes.high)
    )
    same = extremes.low is not None and extremes.low == extremes.high and not extremes.nonfinite
    zero = same and low == high == 0.0
    return Numbers(
        tensor=tensor,
        nonfinite=extremes.nonfinite,
        low=low,
        high=high,
        trailing_zeros=tensor.elements
        if zero and found.is_complete
        else _trailing_zeros(folder, tensor),
        constant=low if same else None,
        complete=found.is_complete,
    )


def _value(raw: Bytes, dtype: str) -> float:
    """Return one raw value as a number."""
    return float(raw.view("<f8")[0] if dtype == "F64" else decode(raw, dtype)[0])


def _trailing_zeros(folder: Path, tensor: Tensor) -> int:
    """Return how many values at the end of a tensor are zero; reads no more than those."""
    size = tensor.end - tensor.start
    if not size or tensor.dtype not in FORMS or not FORMS[tensor.dtype].sign:
        return 0
    item = FORMS[tensor.dtype].unsigned.itemsize
    count, stop, step = 0, size, 64 * item
    while stop:
        start = max(0, stop - step)
        found = count_trailing_zeros(read_bytes(folder, tensor, start, stop), tensor.dtype)
        count += found
        if found * item < stop - start:
            break
        stop, step = start, max(item, TAIL_BYTES // item * item)
    return count
