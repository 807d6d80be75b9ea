"""Evidence about single matrices that have nothing in common with those of the base."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.evidence.lineage.base_fit import UNRELATED, is_large_matrix
from harness.evidence.lineage.change_rank import SAMPLED, find_difference, is_outer, sketch_rank
from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.facts.checkpoint import Adapter, Base, Drift, Drifts, Lineage, Weights
from harness.facts.merges import BaseFit, Strangers
from harness.registry import Missing, NotApplicable

NEAR = 0.7
"""Cosine from which a matrix follows from the base's; training as a whole leaves 0.9 and more."""
BESIDE = 2
"""So many matrices are near theirs for each that is not: else training, or another base, explains
the rest."""
SIZES = (0.05, 20.0)
"""Norms, relative to the base's, within which a matrix is judged; others are weights-exploded's."""
NEW = ("projector", "connector", "merger")
"""Parts that are trained from random values."""


@provides("strangers", Depth.LINEAGE)
def find_strangers(evidence: CheckpointEvidence) -> Strangers:
    """Look for matrices unlike the base's in a model that is otherwise near it."""
    weights: Weights = evidence.get("weights")
    base: Base = evidence.get("base")
    drifts: Drifts = evidence.get("drifts")
    fit: BaseFit = evidence.get("base_fit")
    if fit.unrelated or fit.moved:
        raise NotApplicable("the base is another one: see base-mismatch")
    matrices = [
        one
        for one in drifts.tensors
        if is_large_matrix(weights.tensors[one.name])
        and not is_outer(one.name)
        and not any(word in one.name for word in NEW)
    ]
    if not matrices:
        raise Missing(f"no matrix inside the model is compared with the base {base.root}")
    near = sum(one.cosine > NEAR for one in matrices)
    apart = [one for one in matrices if _is_apart(one)]
    if BESIDE * len(apart) > near:
        apart = []
    found = _without_explained(evidence, apart)
    if found and not any(_is_full(evidence, base, weights, one.name) for one in found[:SAMPLED]):
        found = []  # a strong adapter, of low rank
    return Strangers(
        base=base.root, found={one.name: round(one.cosine, 4) for one in found}, near=near
    )


def _is_apart(one: Drift) -> bool:
    low, high = SIZES
    return low < one.norm_ratio < high and abs(one.cosine) < UNRELATED


def _without_explained(evidence: CheckpointEvidence, apart: Iterable[Drift]) -> list[Drift]:
    """Leave out what a known adapter explains, or may explain where it is no LoRA."""
    adapter: Adapter | None = evidence.find("merged_adapter")
    if adapter is None:
        return list(apart)
    lineage: Lineage | None = evidence.find("lineage")
    modules = () if lineage is None else lineage.modules
    unexplained = {f"{one.module}.weight" for one in modules if one.is_foreign}
    return [one for one in apart if not one.is_target or one.name in unexplained]


def _is_full(evidence: CheckpointEvidence, base: Base, weights: Weights, name: str) -> bool:
    new, old = weights.tensors[name], base.tensors[name]
    blocks = find_difference(evidence.folder, new, Path(base.root), old)
    return sketch_rank(blocks, new.shape[1]) is None
