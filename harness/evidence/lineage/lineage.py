"""Evidence about a merge: is `merged = base + D`, with D the change that the adapter describes?

For every adapted module k = <merged - base, D> / <D, D> and what is left over. D is what the change
looks like *after rounding to the type it was merged in*: an adapter smaller than half a step of
bf16 leaves the weights as they are, and that is not a fault of the merge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from harness.evidence.adapters.adapter import check_patterns, scaling
from harness.evidence.lineage.base import read_origin
from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.evidence.values.arrays import (
    EPSILON,
    Floats,
    iterate_rows,
    read_array,
)
from harness.evidence.values.decodable import is_float
from harness.evidence.values.packing import Packing, packing_of, repack
from harness.evidence.values.rounding import PRECISIONS, round_to
from harness.evidence.values.scan import THREADS
from harness.facts.adapters import starts_in_base
from harness.facts.checkpoint import Adapter, Base, Lineage, ModuleLineage, Pair, Tensor, Weights
from harness.registry import Missing
from mudpuppy.adapters.tensor_names import RENAMES, rename

BLOCK_ELEMENTS = 1 << 17
"""Numbers of a weight that are compared at once; the arrays of one block stay in the cache."""
SAMPLED = 8
"""Of so many blocks, one tells what rounding does to the change and how large the base is."""
PLAIN_FITS = 0.25
"""Share of the quantised base's misfit below which the plain base explains the merge instead: the
right one of the two leaves rounding only, the other the whole error of int4."""
EXACT_K = 0.01
"""Distance of k from 1 within which the residual is taken against the change as it was rounded."""
LEAST_GAIN = 0.6
"""Share of a change that survives the rounding of the file, below which k says nothing: at half a
step of the type the change is rounded away or doubled."""
MOST_REST = 0.05
"""Rest, relative to the change, up to which such factors were converted or merged as they are."""
MOST_K_ERROR = 0.03
"""Uncertainty of k that the probes allow: within four deviations 0, 1 and 2 stay far apart."""


@dataclass(frozen=True, kw_only=True)
class _Story:
    """One way in which the merged values may have come about."""

    dtype: str
    """Type that the sum was rounded to."""
    base_first: bool
    """Whether the base was rounded to it before the change was added."""
    packing: Packing | None
    """The 4 bits that the base went through, if it did."""


@dataclass
class _Sums:
    """Inner products over one module under one story."""

    change_change: float = 0.0
    exact_exact: float = 0.0
    change_exact: float = 0.0
    seen_change: float = 0.0
    seen_seen: float = 0.0
    miss: float = 0.0
    base_base: float = 0.0
    sampled: int = 0
    count: int = 0

    def add(self, change: Floats, seen: Floats) -> None:
        """Add one block: the expected change and the seen one, which becomes what is left of it."""
        self.change_change += _dot(change, change)
        self.seen_change += _dot(seen, change)
        self.seen_seen += _dot(seen, seen)
        np.subtract(seen, change, out=seen)
        self.miss += _dot(seen, seen)
        self.count += change.size

    def add_sample(self, base: Floats, change: Floats, exact: Floats) -> None:
        """Add a block to what a part of the blocks tells as well as all: what rounding does."""
        self.exact_exact += _dot(exact, exact)
        self.change_exact += _dot(change, exact)
        self.base_base += _dot(base, base)
        self.sampled += base.size


@provides("lineage", Depth.LINEAGE)
def trace_merge(evidence: CheckpointEvidence) -> Lineage:
    """Compare a merged model with its base and its adapter, module by module."""
    adapter: Adapter = evidence.get("merged_adapter")
    merged: Weights = evidence.get("weights")
    base: Base = evidence.get("base")
    if not adapter.pairs:
        raise Missing(f"the adapter {adapter.root} holds no LoRA factors")
    check_patterns(adapter.settings, [pair.module for pair in adapter.pairs])
    evidence.options.progress(f"comparing {evidence.folder} with its base and its adapter")
    origin = read_origin(evidence.folder) or read_origin(Path(adapter.root))
    trace = _Trace(evidence.folder, merged, base, adapter, origin)
    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(trace.compare, adapter.pairs))
    found = tuple(one for one in results if isinstance(one, _Traced))
    not_compared = {
        pair.module: one
        for pair, one in zip(adapter.pairs, results, strict=True)
        if isinstance(one, str)
    }
    if not found:
        reason = next(iter(not_compared.values()), "no common modules")
        raise Missing(f"no adapted module could be compared: {reason}")
    _require_whole_change(adapter, found)
    plain_fits = sum(one.plain_fits for one in found)
    return Lineage(
        base=base.root,
        adapter=adapter.root,
        modules=tuple(one.module for one in found),
        not_compared=not_compared,
        reference="quantised base" if trace.packing else "base",
        plain_base_fits=trace.packing is not None and 2 * plain_fits > len(found),
    )


def _require_whole_change(adapter: Adapter, found: Sequence[_Traced]) -> None:
    """Refuse factors that were begun with a part of the base taken away, and do not tell which.

    Raises:
        Missing: they did, and the merged weights are not the base and a multiple of the product.
    """
    start = adapter.settings.get("init_lora_weights")
    if not starts_in_base(start):
        return
    if median(one.module.residual for one in found) > MOST_REST:
        raise Missing(
            f"init_lora_weights is '{str(start)[:40]}': what was taken from the base at the start "
            "is not in the adapter, so its change cannot be told"
        )


@dataclass(frozen=True, kw_only=True)
class _Traced:
    """What one module says."""

    module: ModuleLineage
    """How it was merged."""
    plain_fits: bool
    """Whether the base as it is explains it better than the quantised one."""


class _Trace:
    """Compares the modules of one merged model."""

    def __init__(
        self,
        folder: Path,
        merged: Weights,
        base: Base,
        adapter: Adapter,
        origin: dict[str, Any],
    ) -> None:
        self.folder = folder
        self.merged = merged
        self.base = base
        self.adapter = adapter
        self.precision = PRECISIONS.get(str(origin.get("precision")), "F32")
        self.packing = packing_of(origin)

    def compare(self, pair: Pair) -> _Traced | str:
        """Return how one module was merged, or why that cannot be said."""
        old = _find_weight(self.base.tensors, pair.module)
        new = _find_weight(self.merged.tensors, pair.module)
        problem = _why_not(pair, old, new, bool(self.adapter.settings.get("fan_in_fan_out")))
        if problem or old is None or new is None:
            return problem
        stories = list(self._stories(old, new, quantised=self.packing is not None))
        plain = list(self._stories(old, new, quantised=False)) if self.packing else []
        sums = self._sum(pair, old, new, [*stories, *plain])
        told = list(zip(stories, sums, strict=False))  # the plain ones follow
        chosen, best = min(told, key=lambda item: item[1].miss)
        rest = [one.miss for one in sums[len(stories) :]]
        return _Traced(
            module=_conclude(pair.module, best, EPSILON.get(chosen.dtype, 0.0)),
            plain_fits=bool(rest) and min(rest) < PLAIN_FITS * best.miss,
        )

    def _stories(self, old: Tensor, new: Tensor, *, quantised: bool) -> Iterator[_Story]:
        """Yield the roundings that the files and the provenance make possible."""
        dtypes = dict.fromkeys((new.dtype, old.dtype, self.precision))
        for dtype in dtypes:
            if EPSILON.get(dtype, 0.0) < EPSILON.get(new.dtype, 0.0):
                continue  # finer than what was stored: the rounding of the file hides it
            for base_first in (True, False) if dtype != old.dtype else (True,):
                yield _Story(
                    dtype=dtype,
                    base_first=base_first,
                    packing=self.packing if quantised else None,
                )

    def _sum(self, pair: Pair, old: Tensor, new: Tensor, stories: list[_Story]) -> list[_Sums]:
        """Return the inner products under every story, from one reading of both tensors."""
        sums = [_Sums() for _ in stories]
        change = _Change(self.adapter, pair)
        rows = max(1, BLOCK_ELEMENTS // max(1, old.shape[1]))
        first = 0
        old_blocks = iterate_rows(Path(self.base.root), old, rows)
        new_blocks = iterate_rows(self.folder, new, rows)
        for number, (before, after) in enumerate(zip(old_blocks, new_blocks, strict=True)):
            product = change.multiply(first, len(before))
            for story, sum_ in zip(stories, sums, strict=True):
                base = round_to(before, story.dtype, old.dtype) if story.base_first else before
                if story.packing is not None:
                    base = repack(base, story.packing)
                is_round = story.base_first and story.packing is None
                zero = base if is_round else round_to(base, story.dtype)
                exact = change.of(first, base, product)
                expected = round_to(base + exact, story.dtype)
                np.subtract(expected, zero, out=expected)
                if number % SAMPLED == 0:
                    sum_.add_sample(zero, expected, exact)
                sum_.add(expected, after - zero)
            first += len(before)
        return sums


class _Change:
    """The change that an adapter describes, by blocks of rows."""

    def __init__(self, adapter: Adapter, pair: Pair) -> None:
        assert pair.a is not None
        assert pair.b is not None
        root = Path(adapter.root)
        a, b = read_array(root, pair.a), read_array(root, pair.b)
        scale = np.float32(scaling(adapter.settings, pair.module))
        transposed = pair.is_embedding or bool(adapter.settings.get("fan_in_fan_out"))
        left, self._right = (a.T, b.T) if transposed else (b, a)
        self._left: Floats = np.multiply(scale, left, dtype=np.float32)
        self._size: Floats | None = None
        if pair.magnitude is not None:
            self._size = read_array(root, pair.magnitude).reshape(-1, 1)

    def multiply(self, first: int, count: int) -> Floats:
        """Return the scaled product of the factors for `count` rows."""
        product: Floats = self._left[first : first + count] @ self._right
        return product

    def of(self, first: int, base: Floats, product: Floats) -> Floats:
        """Return the change of some rows of a base; DoRA's depends on the base itself."""
        if self._size is None:
            return product
        moved = base + product
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        unit = moved / np.where(length == 0, np.float32(1), length)
        return (self._size[first : first + len(base)] * unit - base).astype(np.float32)


def _find_weight(tensors: Mapping[str, Tensor], module: str) -> Tensor | None:
    """Return the weight of a module: of models of images under the older name it is saved by."""
    names = (f"{rename(module, renames)}.weight" for renames in RENAMES)
    return next((tensors[name] for name in names if name in tensors), None)


def _why_not(pair: Pair, old: Tensor | None, new: Tensor | None, fan_in_fan_out: bool) -> str:
    """Return why a module cannot be compared; empty when it can."""
    if old is None or new is None:
        return f"the {'base' if old is None else 'merged model'} has no {pair.module}.weight"
    if pair.a is None or pair.b is None or len(pair.a.shape) != 2 or len(pair.b.shape) != 2:
        return "the adapter lacks one of its two factors"
    if old.shape != new.shape or len(old.shape) != 2:
        return f"shapes {list(old.shape)} and {list(new.shape)}"
    if not all(is_float(one) for one in (old, new, pair.a, pair.b)):
        return f"values of type {old.dtype} and {new.dtype}"
    if pair.magnitude is not None and (pair.is_embedding or fan_in_fan_out):
        return "DoRA on a transposed weight"
    height, width = old.shape
    expected = (height, width) if not (pair.is_embedding or fan_in_fan_out) else (width, height)
    if (pair.b.shape[0], pair.a.shape[1]) != expected or pair.a.shape[0] != pair.b.shape[1]:
        return "the adapter's shapes do not fit the weight"
    return ""


def _conclude(module: str, sums: _Sums, epsilon: float) -> ModuleLineage:
    """Turn inner products into k, residual and their uncertainty."""
    change = math.sqrt(sums.change_change)
    if not math.isfinite(change + sums.seen_seen) or change == 0.0:
        return _unresolved(module)
    k = sums.seen_change / sums.change_change
    residual = math.sqrt(max(0.0, sums.seen_seen - k * k * sums.change_change)) / change
    if abs(k - 1) < EXACT_K:
        residual = min(residual, math.sqrt(sums.miss) / change)
    noise = epsilon * math.sqrt(sums.base_base * sums.count / sums.sampled) / change
    k_error = max(noise, residual) / math.sqrt(sums.count)
    gain = sums.change_exact / sums.exact_exact if sums.exact_exact else 0.0
    return ModuleLineage(
        module=module,
        k=k,
        residual=residual,
        noise=noise,
        k_error=k_error,
        resolvable=LEAST_GAIN < gain < 2 - LEAST_GAIN and k_error < MOST_K_ERROR,
    )


def _unresolved(module: str) -> ModuleLineage:
    return ModuleLineage(
        module=module,
        k=0.0,
        residual=0.0,
        noise=0.0,
        k_error=0.0,
        resolvable=False,
    )


def _dot(left: Floats, right: Floats) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.dot(left.ravel(), right.ravel()))
