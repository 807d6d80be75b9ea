"""Evidence about what moved between two checkpoints of one run, by the values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.evidence.training.outputs import find_earlier
from harness.evidence.values.arrays import iterate_rows, read_bytes
from harness.evidence.values.decodable import is_float
from harness.facts.checkpoint import Adapter, Files, Tensor
from harness.facts.outputs import Motion
from harness.registry import Missing

PIECE_BYTES = 1 << 22
"""Bytes that are compared at once."""


@provides("checkpoint_motion", Depth.WEIGHTS)
def compare_values(evidence: CheckpointEvidence) -> Motion:
    """Compare the values of a checkpoint with those of the one before it."""
    before = find_earlier(evidence.folder)
    earlier = CheckpointEvidence(before)
    adapter: Adapter | None = evidence.find("adapter")
    old_adapter: Adapter | None = earlier.find("adapter")
    if adapter is not None and old_adapter is not None:
        return _compare_adapters(before, evidence.folder, old_adapter, adapter)
    old, new = _model_tensors(earlier), _model_tensors(evidence)
    shared = [name for name in new if name in old and _alike(old[name], new[name])]
    if not shared or len(shared) < len(new):
        raise Missing(f"{evidence.folder.name} and {before.name} hold other tensors")
    # Embeddings and norms are often frozen: what training moves stands in the middle.
    shared.sort(key=lambda name: ("proj" not in name and "attn" not in name, name))
    for count, name in enumerate(shared, start=1):
        if not _is_equal(before, old[name], evidence.folder, new[name]):
            return _moved(before.name, count)
    return Motion(earlier=before.name, compared=len(shared), is_identical=True, still=())


def _moved(earlier: str, compared: int) -> Motion:
    return Motion(earlier=earlier, compared=compared, is_identical=False, still=())


def _model_tensors(evidence: CheckpointEvidence) -> dict[str, Tensor]:
    files: Files = evidence.get("files")
    if any(file.problem for file in files.weights):
        raise Missing("not all weights can be read")
    return {tensor.name: tensor for file in files.weights for tensor in file.tensors}


def _alike(old: Tensor, new: Tensor) -> bool:
    return (old.shape, old.dtype) == (new.shape, new.dtype)


def _is_equal(old_root: Path, old: Tensor, new_root: Path, new: Tensor) -> bool:
    size = new.end - new.start
    for start in range(0, size, PIECE_BYTES):
        stop = min(size, start + PIECE_BYTES)
        mine, theirs = (
            read_bytes(new_root, new, start, stop),
            read_bytes(old_root, old, start, stop),
        )
        if not np.array_equal(mine, theirs):
            return False
    return True


def _compare_adapters(before: Path, now: Path, old: Adapter, new: Adapter) -> Motion:
    shared = [
        name for name, one in new.tensors.items() if name in old.tensors
        and _alike(old.tensors[name], one)
    ]  # fmt: skip
    if not shared:
        raise Missing(f"{now.name} and {before.name} share no tensor")
    equal = {
        name for name in shared if _is_equal(before, old.tensors[name], now, new.tensors[name])
    }
    pairs = [pair for pair in new.pairs if pair.a and pair.b and "experts" not in pair.module]
    still = [
        pair.module
        for pair in pairs
        if pair.a and pair.b and {pair.a.name, pair.b.name} <= equal and _rms(now, pair.b)
    ]
    whole = len(equal) == len(shared) == len(new.tensors)
    return Motion(
        earlier=before.name,
        compared=len(shared),
        is_identical=whole,
        still=() if whole else tuple(still),
    )


def _rms(root: Path, tensor: Tensor) -> float:
    if not is_float(tensor) or not tensor.elements:
        return 0.0
    squares = sum(
        float(np.dot(block.ravel(), block.ravel())) for block in iterate_rows(root, tensor)
    )
    return math.sqrt(squares / tensor.elements) if math.isfinite(squares) else 0.0
