"""Evidence about the distance of every tensor from the tensor of the same name in the base."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from harness.evidence.adapters.adapter import strip_prefix
from harness.evidence.lineage.base import read_origin
from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.evidence.values.arrays import EPSILON, Floats, iterate_rows, read_bytes
from harness.evidence.values.decodable import is_float
from harness.evidence.values.numbers import measure
from harness.evidence.values.packing import Packing, packing_of, repack
from harness.evidence.values.rounding import coarser, round_to
from harness.evidence.values.scan import CHUNK_BYTES, THREADS
from harness.facts.checkpoint import Adapter, Base, Drift, Drifts, Numbers, Tensor, Weights
from harness.registry import Missing

ROUNDINGS = ("F32", "BF16", "F16")
"""Types that the base may have passed through before training."""
MERGED_EVERY = 8
"""Of so many blocks of a tensor that a merge changed, one is compared."""
PACKED_TOLERANCE = 0.02
"""Distance after 4 bits on another device: a level that falls the other way moves a value by a
whole step, 1/7 of its block's largest; two percent of the norm leave room for a few of them."""


@provides("drifts", Depth.LINEAGE)
def measure_drifts(evidence: CheckpointEvidence) -> Drifts:
    """Compare the checkpoint with its base, tensor by tensor."""
    weights: Weights = evidence.get("weights")
    base: Base = evidence.get("base")
    shared = sorted(weights.tensors.keys() & base.tensors.keys())
    if not shared and (evidence.find("gguf") is not None) != _is_gguf(base):
        raise Missing(
            f"the values were not compared with the base {base.root}: GGUF gives tensors other "
            "names; compare the model that it was converted from"
        )
    if not shared:
        raise Missing(f"the checkpoint and the base {base.root} share no tensor name")
    evidence.options.progress(f"comparing {evidence.folder} with {base.root}")
    targets = _targets(evidence)
    packing = packing_of(read_origin(evidence.folder))
    jobs, reshaped = [], {}
    packed: frozenset[str] = evidence.get("quantised_parts")
    for name in shared:
        new, old = weights.tensors[name], base.tensors[name]
        if name in packed or is_float(new) != is_float(old):
            continue  # levels of a quantised layer: their shape is that of the packing
        if new.shape != old.shape:
            reshaped[name] = f"{list(new.shape)} instead of {list(old.shape)}"
        elif is_float(new) and is_float(old):
            meter = _Meter(evidence.folder, Path(base.root), new, old, packing)
            jobs.append((meter, name))
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda job: job[0].measure(job[1], targets), jobs))
    same_names = weights.tensors.keys() == base.tensors.keys()
    identical = same_names and not reshaped and len(found) == len(shared)
    return Drifts(
        base=base.root,
        tensors=tuple(found),
        shape_changed=reshaped,
        identical=identical and all(one.relative == 0.0 for one in found),
        same_names=same_names and len(found) == len(shared),
    )


def _is_gguf(base: Base) -> bool:
    return any(tensor.file.endswith(".gguf") for tensor in base.tensors.values())


def _targets(evidence: CheckpointEvidence) -> set[str] | None:
    """Return the tensors that training was meant to change; None when all may have been."""
    adapter: Adapter | None = evidence.find("merged_adapter")
    if adapter is None:
        return None
    names = {f"{pair.module}.weight" for pair in adapter.pairs} | set(adapter.replaced)
    names |= {f"{pair.module}.bias" for pair in adapter.pairs}
    weights: Weights = evidence.get("weights")
    if not adapter.is_lora:
        names |= _inside(adapter, weights)
    if any("embed" in name or name.startswith("lm_head") for name in names):
        # A tied head follows the embedding and the reverse.
        names |= {
            n for n in weights.tensors if n.endswith(("embed_tokens.weight", "lm_head.weight"))
        }
    return names | _renamed_targets(adapter, weights)


def _inside(adapter: Adapter, weights: Weights) -> set[str]:
    """Return the tensors of modules in which an adapter of another method has tensors of its own.

    Its keys are the name of the module and one or more parts after it, whatever the method.
    """
    modules: set[str] = set()
    for key in adapter.tensors:
        parts = (strip_prefix(key) or key).split(".")
        modules |= {".".join(parts[:length]) for length in range(1, len(parts))}
    return {name for name in weights.tensors if name.rpartition(".")[0] in modules}


def _renamed_targets(adapter: Adapter, weights: Weights) -> set[str]:
    """Return tensors that may be the targets whose module is called otherwise in the file.

    Loaders fuse experts and rename modules; the adapter then names what only exists in memory.
    """
    modules = [pair.module for pair in adapter.pairs]
    lost = [name for name in modules if f"{name}.weight" not in weights.tensors]
    parts = tuple({f".{name.rpartition('.')[2]}.weight" for name in lost})
    fused = any("experts" in name for name in lost)
    return {
        name
        for name in weights.tensors
        if (parts and name.endswith(parts)) or (fused and "experts" in name)
    }


class _Meter:
    """Measures one tensor against its base."""

    def __init__(
        self, folder: Path, base: Path, new: Tensor, old: Tensor, packing: Packing | None
    ) -> None:
        self.folder = folder
        self.base = base
        self.new = new
        self.old = old
        self.every = 1
        self.packing = packing if len(new.shape) == 2 and ".layers." in new.name else None

    def measure(self, name: str, targets: set[str] | None) -> Drift:
        """Return the distance, after the most favourable rounding of the base.

        Of what a merge was meant to change, a part of the blocks says how far: the lineage of the
        merge reads all of it.
        """
        is_target = targets is None or name in targets
        self.every = MERGED_EVERY if targets is not None and is_target else 1
        # Twice: the base and the checkpoint may each have been rounded once.
        tolerance = 2 * EPSILON[coarser(self.new.dtype, self.old.dtype)]
        relative, ratio = 0.0, 1.0
        if not self._is_same():
            relative, ratio = self._compare("F32", None)
            if not relative and self.every > 1:
                self.every = 1  # what differs lies outside of these blocks
                relative, ratio = self._compare("F32", None)
        if not is_target:
            for dtype in ROUNDINGS:
                for packing in dict.fromkeys((None, self.packing)):
                    if relative > tolerance:
                        relative = min(relative, self._compare(dtype, packing)[0])
                        if packing is not None:
                            tolerance = max(tolerance, PACKED_TOLERANCE)
        return Drift(
            name=self.new.name,
            relative=relative,
            tolerance=tolerance,
            norm_ratio=ratio,
            is_target=is_target,
        )

    def _is_same(self) -> bool:
        """Whether both hold the same bytes; stops at the first that differ."""
        if self.new.dtype != self.old.dtype:
            return False
        size = self.new.end - self.new.start
        for start in range(0, size, CHUNK_BYTES):
            stop = min(size, start + CHUNK_BYTES)
            mine = read_bytes(self.folder, self.new, start, stop)
            if not np.array_equal(mine, read_bytes(self.base, self.old, start, stop)):
                return False
        return True

    def _compare(self, dtype: str, packing: Packing | None) -> tuple[float, float]:
        """Return |new - old| / |old| and |new| / |old|; infinite where the base is zero."""
        gap = old_squares = new_squares = 0.0
        pairs: Any = zip(
            iterate_rows(self.folder, self.new, every=self.every),
            iterate_rows(self.base, self.old, every=self.every),
            strict=True,
        )
        for after, before in pairs:
            expected = round_to(before, dtype, self.old.dtype)
            if packing is not None:
                expected = repack(expected, packing)
            size = _dot(after)
            if not math.isfinite(size):  # what is not finite is weights-nonfinite's finding
                finite = np.isfinite(after)
                wide = after[finite].astype(np.float64)
                size = float(np.dot(wide, wide))
                after = np.where(finite, after, expected)
            gap += _dot(after - expected)
            old_squares += _dot(before)
            new_squares += size
        if old_squares == 0:
            same = gap == 0
            return (0.0, 1.0) if same else (math.inf, math.inf)
        return math.sqrt(gap / old_squares), math.sqrt(new_squares / old_squares)


def _dot(values: Floats) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(np.dot(values.ravel(), values.ravel()))
    return total if math.isfinite(total) else math.inf


@provides("zeros_expected")
def find_expected_zeros(evidence: CheckpointEvidence) -> dict[str, bool | None]:
    """Return, for every all-zero tensor, whether the base has zeros there too (None: no base)."""
    numbers: dict[str, Numbers] = evidence.get("numbers")
    base: Base | None = evidence.find("base")
    zeros = [name for name, one in numbers.items() if one.is_zero or one.trailing_zeros]
    if base is None:
        return dict.fromkeys(zeros)
    found: dict[str, bool | None] = {}
    for name in zeros:
        old, mine = base.tensors.get(name), numbers[name]
        known = old is not None and is_float(old)
        if old is None or not known:
            found[name] = None
            continue
        then = measure(Path(base.root), old)
        found[name] = then.trailing_zeros >= mine.trailing_zeros
    return found
