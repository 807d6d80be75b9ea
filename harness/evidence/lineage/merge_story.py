"""Evidence about why a merge is not what it should be: what is left over, which scale was used."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.evidence.adapters.adapter import rank_and_alpha, scaling
from harness.evidence.adapters.strength import find_weight
from harness.evidence.lineage.change_rank import SAMPLED, lies_on_grid, sketch_rank
from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.evidence.values.arrays import Floats, iterate_rows, read_array
from harness.evidence.values.decodable import is_float
from harness.facts.checkpoint import Adapter, Base, Lineage, Pair, Tensor, Weights
from harness.facts.merges import BaseFit, Leftover, MergeStory

LEAST_RESIDUAL = 0.05
"""Residual beyond three times the rounding's from which something else must be in the tensor."""
MOST_NOISE = 0.3
"""Rounding, as a share of the change, beyond which nothing is looked for in the rest."""
NEAR = 0.03
"""Relative distance within which a k stands for a scale."""
LARGEST = 1 << 27
"""Numbers of a matrix beyond which it is left out."""


@provides("merge_story", Depth.LINEAGE)
def tell_merge(evidence: CheckpointEvidence) -> MergeStory:
    """Look into the modules of a merge whose k or residual is not what it should be."""
    lineage: Lineage | None = evidence.find("lineage")
    if lineage is None:
        return MergeStory(leftovers={}, astray={}, scales={})
    adapter: Adapter = evidence.get("merged_adapter")
    base: Base = evidence.get("base")
    weights: Weights = evidence.get("weights")
    fit: BaseFit | None = evidence.find("base_fit")
    teller = _Teller(evidence.folder, weights, base, adapter)
    judged = [one for one in lineage.modules if one.resolvable]
    # A large rest makes k uncertain in small matrices; its rank can be told all the same.
    dirty = [
        one
        for one in lineage.modules
        if one.noise < MOST_NOISE and one.residual > LEAST_RESIDUAL + 3 * one.noise
    ]
    if fit is not None and fit.moved:
        dirty = []  # another base explains what is left over
    scales = {
        one.module: name_scale(adapter.settings, one.module, one.k)
        for one in judged
        if abs(one.k - 1) > one.k_margin
    }
    astray = () if fit is None else fit.astray
    return MergeStory(
        leftovers=teller.leftovers({one.module: one.k for one in dirty}),
        astray=teller.look_astray([one.name for one in astray]),
        scales=scales,
    )


def name_scale(settings: Mapping[str, Any], module: str, k: float) -> str:
    """Return in words which wrong scale a k stands for; empty when none fits."""
    rank, alpha = rank_and_alpha(settings, module)
    right = scaling(settings, module)
    if rank <= 0 or right <= 0 or not math.isfinite(k):
        return ""
    plain = dict(settings, rank_pattern=None, alpha_pattern=None)
    default_rank, default_alpha = rank_and_alpha(plain, module)
    root = bool(settings.get("use_rslora"))
    candidates = [
        ("subtracted instead of added", -right),
        ("alpha / r, as if use_rslora were not set", alpha / rank if root else 0),
        ("alpha / sqrt(r), as if use_rslora were set", 0 if root else alpha / math.sqrt(rank)),
        ("alpha alone, without dividing by the rank", alpha),
        ("1, without alpha and rank", 1.0),
        ("alpha / r of the whole adapter, without alpha_pattern", default_alpha / rank),
        ("alpha / r with the rank of the whole adapter", alpha / (default_rank or rank)),
        ("alpha / r without both patterns", default_alpha / (default_rank or rank)),
        ("1 / r, without alpha", 1 / rank),
        ("half of it, as in an average with the base", right / 2),
        ("alpha 8 / r, PEFT's default for lora_alpha", 8 / rank),
        ("alpha 16 / r, a default of other tools", 16 / rank),
    ]
    for words, scale in candidates:
        wanted = scale / right
        if wanted and abs(wanted - 1) > NEAR and abs(k - wanted) <= NEAR * abs(wanted):
            return words
    times = round(k)
    if times > 2 and abs(k - times) <= NEAR * times:
        return f"added {times} times"
    implied = k * alpha
    if implied >= 0.5 and abs(implied - round(implied)) <= NEAR * implied:
        return f"as if lora_alpha were {round(implied)} instead of {alpha:g}"
    return ""


class _Teller:
    """Looks at what is left over in single tensors of one merge."""

    def __init__(self, folder: Path, merged: Weights, base: Base, adapter: Adapter) -> None:
        self.folder = folder
        self.merged = merged
        self.base = base
        self.adapter = adapter
        self.pairs = {pair.module: pair for pair in adapter.pairs}

    def leftovers(self, modules: Mapping[str, float]) -> dict[str, Leftover]:
        """Return what is left over in every module; the rank of few stands for that of all."""
        found: dict[str, Leftover] = {}
        for module in sorted(modules):
            if len(found) == SAMPLED and len({one.kind for one in found.values()}) == 1:
                common = next(iter(found.values()))
                return {**dict.fromkeys(modules, common), **found}
            found[module] = self._look(module, modules[module])
        return found

    def look_astray(self, names: list[str]) -> dict[str, Leftover]:
        """Return what differs in tensors that the adapter leaves alone."""
        found = {}
        for name in [n for n in names if len(self.merged.tensors[n].shape) == 2][:SAMPLED]:
            new, old = self.merged.tensors[name], self.base.tensors[name]
            if lies_on_grid(self.folder, new) and not lies_on_grid(Path(self.base.root), old):
                found[name] = Leftover(kind="four-bit")
                continue
            moved = (after - before for after, before in self._rows(new, old))
            rank = sketch_rank(moved, new.shape[1])
            found[name] = Leftover(kind="noise") if rank is None else _low(rank)
        return found

    def _look(self, module: str, k: float) -> Leftover:
        pair = self.pairs.get(module)
        if pair is None:
            return Leftover(kind="noise")  # one of many experts, of whom there are no own factors
        new = find_weight(self.merged.tensors, module)
        old = find_weight(self.base.tensors, module)
        if new is None or old is None or not _can_read(pair, new, old):
            return Leftover(kind="noise")
        left, right = self._factors(pair)
        if pair.magnitude is not None:
            return self._look_at_dora(new, old, left, right)
        if self._is_transposed(new, old, left, right):
            return Leftover(kind="transposed")
        if lies_on_grid(self.folder, new):
            return Leftover(kind="four-bit")

        def left_over() -> Iterator[Floats]:
            first = 0
            for after, before in self._rows(new, old):
                last = first + len(after)
                yield after - before - np.float32(k) * (left[first:last] @ right)
                first = last

        rank = sketch_rank(left_over(), new.shape[1])
        return Leftover(kind="noise") if rank is None else _low(rank)

    def _factors(self, pair: Pair) -> tuple[Floats, Floats]:
        """Return the two factors of the change, the scale in the left one."""
        assert pair.a is not None
        assert pair.b is not None
        root = Path(self.adapter.root)
        a, b = read_array(root, pair.a), read_array(root, pair.b)
        scale = np.float32(scaling(self.adapter.settings, pair.module))
        turned = pair.is_embedding or bool(self.adapter.settings.get("fan_in_fan_out"))
        return (scale * a.T, b.T) if turned else (scale * b, a)

    def _look_at_dora(self, new: Tensor, old: Tensor, left: Floats, right: Floats) -> Leftover:
        """Tell whether the factors of a DoRA were added without its magnitudes."""
        gap = whole = 0.0
        first = 0
        for after, before in self._rows(new, old):
            last = first + len(after)
            change = left[first:last] @ right
            gap += float(np.sum((after - before - change) ** 2))
            whole += float(np.sum(change**2))
            first = last
        near = math.isfinite(gap) and gap < (LEAST_RESIDUAL**2) * whole
        return Leftover(kind="plain-lora" if near else "noise")

    def _is_transposed(self, new: Tensor, old: Tensor, left: Floats, right: Floats) -> bool:
        """Whether the change was added with its axes exchanged, in a square weight."""
        if new.shape[0] != new.shape[1]:
            return False
        both = whole = 0.0
        first = 0
        for after, before in self._rows(new, old):
            last = first + len(after)
            change = right.T[first:last] @ left.T
            both += float(np.sum((after - before) * change))
            whole += float(np.sum(change**2))
            first = last
        return whole > 0 and abs(both / whole - 1) < LEAST_RESIDUAL

    def _rows(self, new: Tensor, old: Tensor) -> Iterator[tuple[Floats, Floats]]:
        news, olds = iterate_rows(self.folder, new), iterate_rows(Path(self.base.root), old)
        yield from zip(news, olds, strict=True)


def _low(rank: int) -> Leftover:
    return Leftover(kind="low-rank", rank=rank)


def _can_read(pair: Pair, new: Tensor, old: Tensor) -> bool:
    return (
        pair.a is not None
        and pair.b is not None
        and new.shape == old.shape
        and len(new.shape) == 2
        and new.elements <= LARGEST
        and is_float(new)
        and is_float(old)
    )
