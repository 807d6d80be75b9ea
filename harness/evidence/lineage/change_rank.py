"""The rank of what is left of a matrix, by a random sketch of it; and whether it lies on a grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.evidence.values.arrays import Floats, iterate_rows
from harness.evidence.values.decodable import is_float
from harness.facts.checkpoint import Base, Drifts, Tensor, Weights
from harness.facts.merges import ChangeRanks, Strangers
from harness.registry import Missing, NotApplicable

SKETCH = 96
"""Columns of the sketch: ranks up to half of it are told from noise; adapters seldom have more."""
TAIL = 0.4
"""Part of the singular values, the smallest, whose energy is looked at: in noise, of whatever
shape, it holds four percent or more."""
TAIL_ENERGY = 0.012
"""Share of the energy in the tail below which a matrix is of low rank."""
LEVELS = 16
"""Values that four bits can tell apart."""
WINDOW = 32
"""Numbers in which they are counted; blocks of quantised formats have 32 or more."""
GRID_SAMPLE = 1 << 16
"""Numbers of a tensor that are looked at."""
SAMPLED = 8
"""Matrices whose rank is measured, spread over the model."""


def sketch_rank(blocks: Iterable[Floats], width: int) -> int | None:
    """Return the rank of a matrix that comes as blocks of rows; None when it is not low.

    Args:
        blocks: the rows, in order.
        width: columns of the matrix.
    """
    columns = min(SKETCH, width)
    random = np.random.default_rng(0)
    project = (
        random.standard_normal((width, columns), dtype=np.float32) if columns < width else None
    )
    parts = [block if project is None else block @ project for block in blocks]
    if not parts:
        return None
    sketch = np.concatenate(parts)
    if not np.isfinite(sketch).all():
        return None
    if sketch.shape[0] > 4 * columns:
        sketch = np.asarray(np.linalg.qr(sketch, mode="r"))
    energy = np.linalg.svd(sketch, compute_uv=False).astype(np.float64) ** 2
    total = float(energy.sum())
    tail = max(1, int(TAIL * len(energy)))
    if total == 0 or float(energy[-tail:].sum()) > TAIL_ENERGY * total:
        return None
    kept = np.cumsum(energy) / total
    return int(np.searchsorted(kept, 1 - TAIL_ENERGY)) + 1


def lies_on_grid(folder: Path, tensor: Tensor) -> bool:
    """Whether nearly every window of a tensor holds no more values than four bits can tell."""
    if not is_float(tensor) or tensor.dtype.startswith("F8") or tensor.elements < 4 * WINDOW:
        return False
    found: list[Floats] = []
    count = 0
    for block in iterate_rows(folder, tensor):
        found.append(block.ravel())
        count += block.size
        if count >= GRID_SAMPLE:
            break
    flat = np.concatenate(found)[:GRID_SAMPLE]
    windows = np.sort(flat[: flat.size // WINDOW * WINDOW].reshape(-1, WINDOW), axis=1)
    values = 1 + (np.diff(windows, axis=1) != 0).sum(axis=1)
    return bool((values <= LEVELS).mean() > 0.95)


@provides("change_ranks", Depth.LINEAGE)
def rank_changes(evidence: CheckpointEvidence) -> ChangeRanks:
    """Measure the ranks of the differences to the base where no adapter explains them."""
    weights: Weights = evidence.get("weights")
    if evidence.find("merged_adapter") is not None:
        raise NotApplicable("the adapter of this merge is known: k says more")
    base: Base = evidence.get("base")
    drifts: Drifts = evidence.get("drifts")
    strangers: Strangers | None = evidence.find("strangers")
    apart = strangers.found if strangers else {}  # no change of theirs: another matrix
    moved = [
        one.name for one in drifts.tensors if one.relative > one.tolerance and one.name not in apart
    ]
    names = [n for n in moved if _is_matrix(weights.tensors[n]) and not is_outer(n)]
    packed: frozenset[str] = evidence.get("quantised_parts")
    inner = [one.name for one in drifts.tensors if not is_outer(one.name)]
    if not names and packed and not any(_is_matrix(weights.tensors[name]) for name in inner):
        raise Missing(
            "no matrix inside the model could be compared: all are quantised, and what rounding "
            f"left of a change from the base {base.root} has no rank"
        )
    if not names:
        raise Missing(f"no matrix inside the model differs from the base {base.root}")
    low, full = {}, []
    for name in _spread(names):
        new, old = weights.tensors[name], base.tensors[name]
        blocks = find_difference(evidence.folder, new, Path(base.root), old)
        rank = sketch_rank(blocks, new.shape[1])
        if rank is None:
            full.append(name)
        else:
            low[name] = rank
    others = len(moved) - len(names)
    return ChangeRanks(base=base.root, low=low, full=tuple(full), others_moved=others)


def _is_matrix(tensor: Tensor) -> bool:
    return len(tensor.shape) == 2 and min(tensor.shape) >= 8


def is_outer(name: str) -> bool:
    """Whether a matrix is an embedding, a head or a router, which are often trained apart."""
    return any(word in name for word in ("embed", "lm_head", "wte", "router", ".gate.", "score"))


def _spread(names: list[str]) -> list[str]:
    """Return a few of the names, spread over all of them and over their last words."""
    if len(names) <= 2 * SAMPLED:
        return names
    step = len(names) / (2 * SAMPLED)
    return [names[int(number * step)] for number in range(2 * SAMPLED)]


def find_difference(new_root: Path, new: Tensor, old_root: Path, old: Tensor) -> Iterator[Floats]:
    """Yield the difference of two tensors of one shape by blocks of rows."""
    pairs = zip(iterate_rows(new_root, new), iterate_rows(old_root, old), strict=True)
    for after, before in pairs:
        yield after - before
