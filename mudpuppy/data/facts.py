"""What a rendered dataset teaches: lengths, shares of trained and EOS tokens, cuts, duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from mudpuppy.data.samples import Sample

IGNORED = -100
"""Label of a token that is not trained, as in `mudpuppy.data.render`."""
NUM_BINS = 10
"""Bars of the histogram."""


class Row(Protocol):
    """A rendered sample."""

    @property
    def input_ids(self) -> list[int]:
        """Token ids, one a position."""

    @property
    def labels(self) -> list[int]:
        """The same ids where something is learnt, -100 elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens a sample, before anything is cut."""

    smallest: int
    median: int
    mean: float
    p95: int
    """95 of 100 samples are not longer."""
    largest: int


@dataclass(frozen=True, kw_only=True)
class Bin:
    """One bar of the histogram."""

    start: int
    """Smallest length that it counts, in tokens."""
    stop: int
    """Smallest length that it does not count."""
    count: int


@dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """What is taught when every sample is cut to `max_length` tokens."""

    samples: int
    """Samples that were rendered."""
    lengths: Lengths
    bins: tuple[Bin, ...]
    tokens: int
    """Tokens that are kept."""
    trained_tokens: int
    """Of the kept ones, those with a label."""
    eos_tokens: int
    """Trained tokens that end a turn."""
    not_ending_in_eos: tuple[int, ...]
    """Lines of the samples whose trained text does not end in EOS."""
    nothing_trained: tuple[int, ...]
    """Lines of the samples of which nothing is trained, and which are left out."""
    truncated: tuple[int, ...]
    """Lines of the samples that are cut."""
    lost_tokens: int
    """Tokens that are cut off."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One sample's numbers."""

    line: int
    length: int
    """Tokens before the cut."""
    kept: int
    """Tokens after it."""
    trained: int
    eos: int
    ends_in_eos: bool


def measure(line: int, whole: Row | None, cut: Row | None, eos_ids: frozenset[int]) -> Measured:
    """Return the numbers of one sample.

    Args:
        line: where the sample stands.
        whole: the sample with all its tokens; None where nothing of it would be trained.
        cut: the sample as it is trained; None where nothing of it is left to train.
        eos_ids: ids that end a turn.
    """
    labels = [label for label in cut.labels if label != IGNORED] if cut else []
    return Measured(
        line=line,
        length=len(whole.input_ids) if whole else 0,
        kept=len(cut.input_ids) if cut else 0,
        trained=len(labels),
        eos=sum(label in eos_ids for label in labels),
        ends_in_eos=bool(labels) and labels[-1] in eos_ids,
    )


def summarise(measured: Sequence[Measured]) -> TokenFacts:
    """Add up the numbers of one sample or more."""
    lengths = sorted(one.length for one in measured)
    left = [one for one in measured if one.trained]
    return TokenFacts(
        samples=len(measured),
        lengths=Lengths(
            smallest=lengths[0],
            median=lengths[len(lengths) // 2],
            mean=round(sum(lengths) / len(lengths), 1),
            p95=lengths[min(len(lengths) - 1, len(lengths) * 95 // 100)],
            largest=lengths[-1],
        ),
        bins=_bins(lengths),
        tokens=sum(one.kept for one in left),
        trained_tokens=sum(one.trained for one in left),
        eos_tokens=sum(one.eos for one in left),
        not_ending_in_eos=tuple(one.line for one in left if not one.ends_in_eos),
        nothing_trained=tuple(one.line for one in measured if not one.trained),
        truncated=tuple(one.line for one in measured if one.kept < one.length),
        lost_tokens=sum(one.length - one.kept for one in measured),
    )


def _bins(lengths: Sequence[int]) -> tuple[Bin, ...]:
    """Return bars of one round width, from the smallest length to the largest."""
    low, high = lengths[0], lengths[-1]
    width = _round_width((high - low + 1) / NUM_BINS)
    start = low // width * width
    count = (high - start) // width + 1
    counts = [0] * count
    for length in lengths:
        counts[(length - start) // width] += 1
    return tuple(
        Bin(start=start + i * width, stop=start + (i + 1) * width, count=n)
        for i, n in enumerate(counts)
    )


def _round_width(least: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50 ... that is not below `least`."""
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale >= least:
                return step * scale
        scale *= 10


def duplicates(samples: Sequence[Sample]) -> tuple[int, ...]:
    """Return the lines of the samples that repeat an earlier one."""
    seen: set[bytes] = set()
    lines = []
    for sample in samples:
        content = repr(replace(sample, line=0)).encode("utf-8", "backslashreplace")
        digest = hashlib.sha256(content).digest()
        if digest in seen:
            lines.append(sample.line)
        seen.add(digest)
    return tuple(lines)


def to_json(facts: TokenFacts) -> dict[str, Any]:
    """Return the facts as JSON values."""
    return asdict(facts)
