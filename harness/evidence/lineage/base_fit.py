"""Evidence about whether the named base is the one that a checkpoint was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.evidence.lineage.base import find_output, read_origin
from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.facts.checkpoint import Adapter, Base, Drift, Drifts, Lineage, Pair, Tensor
from harness.facts.merges import BaseFit
from harness.registry import Missing
from mudpuppy.provenance import fingerprint_model

UNRELATED = 0.2
"""Cosine below which two matrices have nothing in common: of two drawn at random it is
1 / sqrt(elements), and what was trained as a whole stays above 0.9."""
LARGE = 1024
"""Elements from which that is seven standard deviations of chance."""
MOST = 0.9
"""Share of the matrices that are unrelated where the base is another."""
LEAST_MATRICES = 2
"""So many of them at least."""


@provides("any_lineage")
def give_lineage(evidence: CheckpointEvidence) -> Lineage | None:
    """Return the lineage of a merge, or None when there is none."""
    found: Lineage | None = evidence.find("lineage")
    return found


@provides("base_fit", Depth.LINEAGE)
def weigh_base(evidence: CheckpointEvidence) -> BaseFit:
    """Compare shapes, fingerprints and untrained tensors with the base."""
    base: Base = evidence.get("base")
    adapter: Adapter | None = evidence.find("adapter")
    drifts: Drifts | None = evidence.find("drifts")
    if adapter is None and drifts is None:
        raise Missing(
            evidence.was_missing("drifts")
            or f"the checkpoint shares no tensor with the base {base.root}"
        )
    shapes = _adapter_shapes(adapter, base) if adapter else {}
    moved: tuple[Drift, ...] = ()
    astray: tuple[Drift, ...] = ()
    unrelated: tuple[Drift, ...] = ()
    frozen = 0
    if drifts is not None:
        shapes |= _model_shapes(drifts)
        moved, astray = _sort_moved(drifts)
        frozen = sum(not one.is_target for one in drifts.tensors)
        if not frozen:
            unrelated = _find_unrelated(drifts, base)
    stored, found = _fingerprints(evidence.folder, base)
    return BaseFit(
        base=base.root,
        named_by=base.named_by,
        compared=(len(adapter.pairs) if adapter else 0) + (len(drifts.tensors) if drifts else 0),
        shapes=shapes,
        moved=moved,
        astray=astray,
        unrelated=unrelated,
        frozen=frozen,
        adapter_alone=drifts is None,
        stored_fingerprint=stored,
        found_fingerprint=found,
    )


def _adapter_shapes(adapter: Adapter, base: Base) -> dict[str, str]:
    """Return the pairs whose outer sizes are not those of the base's weight."""
    found = {}
    for pair in adapter.pairs:
        old = base.tensors.get(f"{pair.module}.weight")
        sizes = _outer_sizes(pair)
        if old is None or sizes is None or len(old.shape) != 2 or old.dtype in ("U8", "I8", "I32"):
            continue
        if sizes not in (old.shape, old.shape[::-1]):
            found[pair.module] = f"adapter {list(sizes)}, base {list(old.shape)}"
    return found


def _outer_sizes(pair: Pair) -> tuple[int, int] | None:
    if pair.a is None or pair.b is None or len(pair.a.shape) != 2 or len(pair.b.shape) != 2:
        return None
    return pair.b.shape[0], pair.a.shape[1]


def _model_shapes(drifts: Drifts) -> dict[str, str]:
    """Return changed shapes if more than a resized vocabulary changed."""
    other = {n: t for n, t in drifts.shape_changed.items() if "embed" not in n and "head" not in n}
    return dict(other)


def _sort_moved(drifts: Drifts) -> tuple[tuple[Drift, ...], tuple[Drift, ...]]:
    """Return (moved, astray): another base moves most tensors, a lost freeze or an edit a few."""
    frozen = [one for one in drifts.tensors if not one.is_target]
    off = sorted(
        (one for one in frozen if one.relative > one.tolerance), key=lambda d: (-d.relative, d.name)
    )
    # Rounding spares embeddings and norms are often all 1: where there is an untrained embedding,
    # it alone tells bases apart.
    matrices = [one for one in frozen if "norm" not in one.name and not one.name.endswith("bias")]
    alone = all("embed" in one.name for one in off)
    if alone and any("lm_head" in one.name and one not in off for one in matrices):
        return (), tuple(off)  # all but the embedding is the base's: the base is the right one
    matrices = [one for one in matrices if "embed" in one.name] or matrices
    off_matrices = [one for one in off if one in matrices]
    # Most of them: an edit or a lost freeze touches few, another base has nearly every value other.
    if matrices and 2 * len(off_matrices) > len(matrices):
        return tuple(off), ()
    return (), tuple(off)


def _find_unrelated(drifts: Drifts, base: Base) -> tuple[Drift, ...]:
    """Return the matrices that are unrelated to the base's, when nearly all are.

    Training leaves every matrix near where it began; another model has nothing in common with it,
    of which the same permutation of some rows is told by the matrices it spares.
    """
    matrices = [one for one in drifts.tensors if is_large_matrix(base.tensors[one.name])]
    found = [one for one in matrices if abs(one.cosine) < UNRELATED]
    if len(found) < max(LEAST_MATRICES, MOST * len(matrices)):
        return ()
    return tuple(sorted(found, key=lambda one: (abs(one.cosine), one.name)))


def is_large_matrix(tensor: Tensor) -> bool:
    """Whether a tensor is a matrix so large that chance makes no two of them alike."""
    return len(tensor.shape) == 2 and min(tensor.shape) >= 8 and tensor.elements >= LARGE


def _fingerprints(folder: Path, base: Base) -> tuple[str, str]:
    """Return the fingerprint stored while training, and that of the base as it is now."""
    output = find_output(folder)
    if output is not None and output.resolve() == Path(base.root).resolve():
        return "", ""  # the record is that of the output and names what the output was made from
    origin = read_origin(folder).get("base")
    stored: Any = origin.get("fingerprint") if isinstance(origin, dict) else None
    if not isinstance(stored, str) or not stored:
        return "", ""
    try:
        return stored, fingerprint_model(Path(base.root)) or ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return stored, ""  # a base that cannot be read whole is reported by its own diagnosis
