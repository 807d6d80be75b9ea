"""One pass over the values of many tensors: threads, reused buffers, memory bounded by the chunk.

Files are read with `preadv`, not mapped: a file that shrinks while it is examined gives an error,
not a crash. Half a megabyte at a time stays in the cache of a core, so the values are read from
memory once, whatever is asked about them. What is here is the whole pass, in numpy; where much is
to be read, a compiled one takes its place (`compiled`), which tells the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.evidence.files.header_only import require_values
from harness.evidence.values.bits import FORMS, Bytes, Extremes
from harness.evidence.values.blocks import BLOCKS, decode_blocks, is_decoded
from harness.evidence.values.reading import Slice, fill
from harness.evidence.values.rowsums import RowSums, shape_rows, sum_rows
from harness.facts.checkpoint import Tensor
from harness.registry import Missing

if TYPE_CHECKING:
    from harness.evidence.values.compiled.kernel import ScanKernel

CHUNK_BYTES = 1 << 19
"""Bytes that are read at once."""
JOB_BYTES = 1 << 23
"""Bytes that one thread takes on at once."""
THREADS = min(8, os.cpu_count() or 1)
"""Threads; more than eight wait for memory."""
COMPILED_FROM_BYTES = 1 << 28
"""Bytes from which on compiled C is asked for; to look for it takes as long as reading less."""
PLACES = 688
"""Places of a tensor that a sample reads: a fault in 1% of them is seen with 99.9%."""
LEAST_SAMPLED = 32
"""How many times larger than its sample a tensor must be for the sample to save time."""
PLACE_BYTES = 1 << 12
"""Size of a place, unless a row is longer."""


@dataclass
class Found:
    """What was found in a tensor."""

    tensor: Tensor
    """The tensor."""
    extremes: Extremes
    """Its extremes; without values for integers."""
    sums: list[RowSums] = field(default_factory=list)
    """Sums over its rows, in order; empty when they were not asked for or the shape has none."""
    bytes_read: int = 0
    """How much of it was read."""

    @property
    def is_complete(self) -> bool:
        """Whether all of it was read."""
        return self.bytes_read == self.tensor.end - self.tensor.start


def scan(
    folder: Path,
    tensors: Iterable[Tensor],
    *,
    rows: bool = False,
    quick: bool = False,
    seed: int = 0,
) -> Iterator[Found]:
    """Yield what each tensor holds, in the order given.

    Args:
        folder: where the files are.
        tensors: what to read; those of no float type are passed over.
        rows: whether to sum rows as well.
        quick: whether a sample will do for the large ones.
        seed: of the places of samples; at least 0.

    Raises:
        Missing: a file cannot be read, or ends inside a tensor.
    """
    wanted = [one for one in tensors if one.dtype in FORMS or is_decoded(one.dtype)]
    jobs = list(_gather(_slice(wanted, rows=rows, quick=quick, seed=seed)))
    kernel = find_kernel(sum(one.stop - one.start for job in jobs for one in job))
    open_: Found | None = None
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for part, is_last in _flatten(pool, folder, jobs, kernel):
                if open_ is None:
                    open_ = part
                else:
                    _join(open_, part)
                if is_last:
                    yield open_
                    open_ = None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def find_kernel(total_bytes: int) -> ScanKernel | None:
    """Return the compiled pass, or None where numpy is to do it."""
    if total_bytes < COMPILED_FROM_BYTES:
        return None
    from harness.evidence.values.compiled.choose import choose

    return choose(total_bytes).kernel


def _flatten(
    pool: ThreadPoolExecutor, folder: Path, jobs: list[list[Slice]], kernel: ScanKernel | None
) -> Iterator[tuple[Found, bool]]:
    done = pool.map(lambda job: _work(folder, job, kernel), jobs)
    for job, parts in zip(jobs, done, strict=True):
        yield from zip(parts, (one.is_last for one in job), strict=True)


def _join(whole: Found, part: Found) -> None:
    whole.extremes.merge(part.extremes)
    whole.sums += part.sums
    whole.bytes_read += part.bytes_read


def _slice(tensors: list[Tensor], *, rows: bool, quick: bool, seed: int) -> Iterator[Slice]:
    """Cut tensors into what one thread takes on at once, between rows where rows count."""
    for number, tensor in enumerate(tensors):
        size = tensor.end - tensor.start
        form = shape_rows(tensor) if rows else None
        unit = size // form[0] if form else BLOCKS.get(tensor.dtype, (1, 16))[1]
        spans = list(_spans(size, unit, (seed, number), quick=quick))
        for place, (start, stop) in enumerate(spans):
            yield Slice(
                number=number,
                tensor=tensor,
                start=start,
                stop=stop,
                unit=unit,
                rows=(stop - start) // unit if form else 0,
                is_last=place == len(spans) - 1,
            )


def _spans(
    size: int, unit: int, seed: tuple[int, int], *, quick: bool
) -> Iterator[tuple[int, int]]:
    """Yield the spans of a tensor to read: all, or one at random in each of `PLACES` parts."""
    place = -(-PLACE_BYTES // unit) * unit
    if quick and size > LEAST_SAMPLED * PLACES * place:
        random = np.random.default_rng(seed)
        for part in range(PLACES):
            first = size * part // PLACES
            last = size * (part + 1) // PLACES - place
            start = int(random.integers(first, last)) // unit * unit
            yield start, start + place
        return
    step = max(unit, JOB_BYTES // unit * unit)
    for start in range(0, max(size, 1), step):
        yield start, min(size, start + step)


def _gather(slices: Iterable[Slice]) -> Iterator[list[Slice]]:
    """Put neighbouring small slices of one file into one job."""
    job: list[Slice] = []
    held = 0
    for one in slices:
        if job and (held >= JOB_BYTES or job[-1].tensor.file != one.tensor.file):
            yield job
            job, held = [], 0
        job.append(one)
        held += one.stop - one.start
    if job:
        yield job


_LOCAL = threading.local()


def _buffer(size: int) -> Bytes:
    """Return this thread's buffer, at least `size` bytes long."""
    held: Bytes | None = getattr(_LOCAL, "buffer", None)
    if held is None or held.size < size:
        held = np.empty(size, np.uint8)
        _LOCAL.buffer = held
    return held


def _work(folder: Path, job: list[Slice], kernel: ScanKernel | None) -> list[Found]:
    """Read the slices of one file."""
    require_values(folder)
    name = job[0].tensor.file
    try:
        handle = os.open(folder / name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as problem:
        raise Missing(f"{name} cannot be read: {problem.strerror}") from problem
    try:
        return [_read(handle, one, kernel) for one in job]
    finally:
        os.close(handle)


def _read(handle: int, part: Slice, kernel: ScanKernel | None) -> Found:
    if kernel is None or not kernel.takes(part):
        return _read_with_numpy(handle, part)
    extremes, sums = kernel.read(handle, part)
    size = part.stop - part.start
    return Found(tensor=part.tensor, extremes=extremes, sums=sums, bytes_read=size)


def _read_with_numpy(handle: int, part: Slice) -> Found:
    tensor, unit = part.tensor, part.unit
    is_plain = tensor.dtype in FORMS
    dtype = tensor.dtype if is_plain else "F32"  # what blocks of levels are decoded to
    found = Found(tensor=tensor, extremes=Extremes(dtype), bytes_read=part.stop - part.start)
    step = max(unit, CHUNK_BYTES // unit * unit)
    for start in range(part.start, part.stop, step):
        stop = min(part.stop, start + step)
        raw = _buffer(step)[: stop - start]
        fill(handle, tensor, start, raw)
        values = raw if is_plain else decode_blocks(raw, tensor.dtype).view(np.uint8)
        found.extremes.add(values)
        if part.rows:
            found.sums.append(sum_rows(values, dtype, (stop - start) // unit))
    return found
