"""Evidence about whether the base that is compared with is the one that an adapter names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness.evidence.adapters.names import find_named_folder
from harness.evidence.adapters.strength import find_weight
from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.evidence.values.arrays import EPSILON, iterate_rows
from harness.evidence.values.decodable import is_float
from harness.evidence.values.rounding import coarser
from harness.facts.checkpoint import Adapter, Base, Tensor
from harness.facts.merges import StageBase
from harness.registry import Missing, NotApplicable

LOOKED_AT = 12
"""Modules whose weights are compared, spread over the model; of each the first rows."""


@provides("stage_base", Depth.LINEAGE)
def compare_bases(evidence: CheckpointEvidence) -> StageBase:
    """Compare the weights of the adapted modules in the two bases."""
    adapter: Adapter | None = evidence.find("adapter") or evidence.find("merged_adapter")
    if adapter is None:
        raise NotApplicable("no adapter is known")
    base: Base = evidence.get("base")
    named = find_named_folder(adapter)
    if named is None:
        raise NotApplicable("the base that the adapter names is not a model in a local folder")
    if named.resolve() == Path(base.root).resolve():
        return StageBase(compared=base.root, named=str(named), differing={}, modules=0)
    other = CheckpointEvidence(named).get("weights").tensors
    names = [pair.module for pair in adapter.pairs]
    step = max(1, len(names) // LOOKED_AT)
    differing, count = {}, 0
    for module in names[::step]:
        here, there = find_weight(base.tensors, module), find_weight(other, module)
        if here is None or there is None or not _comparable(here, there):
            continue
        count += 1
        gap = _distance(Path(base.root), here, named, there)
        # Twice: each of the two may have been rounded once.
        if gap > 2 * EPSILON[coarser(here.dtype, there.dtype)]:
            differing[module] = gap
    if not count:
        raise Missing(f"no adapted module can be compared between {base.root} and {named}")
    return StageBase(compared=base.root, named=str(named), differing=differing, modules=count)


def _comparable(here: Tensor, there: Tensor) -> bool:
    return here.shape == there.shape and is_float(here) and is_float(there)


def _distance(root: Path, here: Tensor, other: Path, there: Tensor) -> float:
    """Return the distance of the first rows, as a share of their norm."""
    mine = next(iterate_rows(root, here), None)
    theirs = next(iterate_rows(other, there), None)
    if mine is None or theirs is None or mine.shape != theirs.shape:
        return 0.0
    size = float(np.linalg.norm(theirs))
    gap = float(np.linalg.norm(mine - theirs))
    return gap / size if size > 0 and np.isfinite(gap) else 0.0
