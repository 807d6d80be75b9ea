"""Evidence about merges into experts that lie in one parameter: k of every expert by itself.

PEFT keeps one pair of factors for all experts: A holds the ranks of the first expert, then those of
the second; B holds, for each rank, a column of every expert. Files may hold the experts in one
tensor of three dimensions, or each by itself under the names of older releases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.evidence.adapters.adapter import check_patterns, scaling
from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.evidence.values.arrays import EPSILON, Floats, decode, read_array, read_bytes
from harness.evidence.values.decodable import is_float
from harness.facts.checkpoint import Adapter, Base, Pair, Tensor, Weights
from harness.facts.weights import ExpertLineage
from harness.registry import Missing, NotApplicable

_FUSED_PAIR = re.compile(r"^(?P<layer>.*\.\d+)\.[\w.]*?experts(?:\.base_layer)*$")
"""Module of a pair of factors for all experts of a layer."""
_ONE = re.compile(r"\.experts\.(?P<number>\d{1,5})\.(?P<part>\w+)\.weight$")
_ALL = re.compile(r"\.experts\.(?P<part>gate_up_proj|down_proj)$")
_GATE, _UP, _DOWN = ("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")
LARGEST = 1 << 28
"""Numbers of a factor beyond which it is left out."""
MOST_ERROR = 0.03
"""Uncertainty of k beyond which nothing is said."""


@dataclass(frozen=True)
class _Place:
    """Where one matrix of one expert lies."""

    tensor: Tensor
    expert: int
    part: str
    """`gate`, `up`, `gate_up` or `down`."""
    slot: int = -1
    """Position in a tensor of all experts; -1 for a tensor of its own."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        return self.tensor.shape[-2:]

    @property
    def label(self) -> str:
        """Name that people are shown."""
        return self.tensor.name if self.slot < 0 else f"{self.tensor.name}[{self.slot}]"

    def read(self, root: Path) -> Floats:
        """Return the matrix."""
        if self.slot < 0:
            return read_array(root, self.tensor)
        size = (self.tensor.end - self.tensor.start) // self.tensor.shape[0]
        raw = read_bytes(root, self.tensor, self.slot * size, (self.slot + 1) * size)
        return decode(raw, self.tensor.dtype).reshape(self.shape)


@provides("expert_lineage", Depth.LINEAGE)
def trace_experts(evidence: CheckpointEvidence) -> tuple[ExpertLineage, ...]:
    """Compare every expert of a merged model with its base and the adapter.

    Raises:
        NotApplicable: the adapter has no factors for fused experts.
        Missing: none of the experts could be compared.
    """
    adapter: Adapter = evidence.get("merged_adapter")
    pairs = [pair for pair in adapter.pairs if _FUSED_PAIR.match(pair.module)]
    if not pairs:
        raise NotApplicable("the adapter has no factors for experts in one parameter")
    merged: Weights = evidence.get("weights")
    base: Base = evidence.get("base")
    check_patterns(adapter.settings, [pair.module for pair in pairs])
    found: list[ExpertLineage] = []
    for pair in pairs:
        match = _FUSED_PAIR.match(pair.module)
        assert match is not None
        new = list(_find_places(merged.tensors, f"{match['layer']}."))
        old = {(one.expert, one.part): one for one in _find_places(base.tensors, match["layer"])}
        factors = _Factors.read(adapter, pair, len({one.expert for one in new}))
        if factors is None:
            continue
        for place in new:
            before = old.get((place.expert, place.part))
            if before is None or before.shape != place.shape or not factors.fits(place):
                continue
            one = _compare(evidence.folder, Path(base.root), place, before, factors)
            if one is not None:
                found.append(one)
    if not found:
        raise Missing("no expert could be compared: names, shapes or types do not fit")
    return tuple(found)


def _find_places(tensors: Mapping[str, Tensor], layer: str) -> Iterator[_Place]:
    for name, tensor in tensors.items():
        if not name.startswith(layer.rstrip(".") + ".") or not is_float(tensor):
            continue
        if (one := _ONE.search(name)) and len(tensor.shape) == 2:
            parts = {"gate": _GATE, "up": _UP, "down": _DOWN}
            part = next((word for word, names in parts.items() if one["part"] in names), "")
            if part:
                yield _Place(tensor, int(one["number"]), part)
        elif (every := _ALL.search(name)) and len(tensor.shape) == 3 and tensor.shape[0] < 10_000:
            part = every["part"].removesuffix("_proj")
            for number in range(tensor.shape[0]):
                yield _Place(tensor, number, part, number)


@dataclass(frozen=True)
class _Factors:
    """The factors of all experts of one parameter."""

    a: Floats
    """A by expert, (experts, rank, in)."""
    b: Floats
    """B as it lies in the file, (out, rank * experts)."""

    @classmethod
    def read(cls, adapter: Adapter, pair: Pair, experts: int) -> _Factors | None:
        """Read the factors of a pair; None when they are not those of so many experts."""
        a, b = pair.a, pair.b
        if a is None or b is None or experts < 2 or len(a.shape) != 2 or len(b.shape) != 2:
            return None
        fits = a.shape[0] == b.shape[1] and a.shape[0] % experts == 0
        if not fits or not is_float(a) or not is_float(b) or max(a.elements, b.elements) > LARGEST:
            return None
        root, scale = Path(adapter.root), np.float32(scaling(adapter.settings, pair.module))
        left = np.multiply(scale, read_array(root, a), dtype=np.float32)
        return cls(left.reshape(experts, -1, a.shape[1]), read_array(root, b))

    def fits(self, place: _Place) -> bool:
        """Whether these factors are those of the parameter that a matrix is part of."""
        height, width = place.shape
        out, into = self.b.shape[0], self.a.shape[2]
        if place.part in ("gate", "up"):
            return (out, into) == (2 * height, width)
        if place.part == "down" and 2 * into == out and place.slot >= 0:
            return False  # the shapes would be those of gate and up as well
        return (out, into) in ((height, width), (width, height))

    def change(self, place: _Place, expert: int, *, exchanged: bool = False) -> Floats:
        """Return the change of an expert, in the shape of a matrix.

        Args:
            place: the matrix.
            expert: whose change.
            exchanged: read B as if the ranks of an expert lay side by side.
        """
        experts, rank, _ = self.a.shape
        if exchanged:
            b = self.b.reshape(-1, experts, rank)[:, expert, :]
        else:
            b = self.b.reshape(-1, rank, experts)[:, :, expert]
        made: Floats = b @ self.a[expert]
        if place.part in ("gate", "up"):
            half = len(made) // 2
            return made[:half] if place.part == "gate" else made[half:]
        return made if made.shape == place.shape else made.T


def _compare(
    root: Path, base: Path, place: _Place, before: _Place, factors: _Factors
) -> ExpertLineage | None:
    """Return k of one matrix, or None where its change is too small to be told."""
    old = before.read(base)
    seen = place.read(root) - old
    change = factors.change(place, place.expert)
    k, error = _project(seen, change, old, place.tensor.dtype)
    if not math.isfinite(k + error):
        return None
    told = ExpertLineage(tensor=place.label, k=k, k_error=min(error, MOST_ERROR))
    if told.is_right or error <= MOST_ERROR:
        explained = "" if told.is_right else _explain(seen, place, factors)
        return ExpertLineage(**{**vars(told), "explained_by": explained})
    explained = _explain(seen, place, factors)
    return ExpertLineage(**{**vars(told), "explained_by": explained}) if explained else None


def _project(seen: Floats, change: Floats, old: Floats, dtype: str) -> tuple[float, float]:
    """Return k and its uncertainty; not finite for a change that rounding swallows."""
    size = float(np.vdot(change, change))
    weight = float(np.vdot(old, old))
    rounding = EPSILON.get(dtype, 0.0) * math.sqrt(weight)
    if not size or not math.isfinite(size + weight) or math.sqrt(size) < rounding:
        return math.nan, math.nan
    k = float(np.vdot(seen, change)) / size
    rest = math.sqrt(max(0.0, float(np.vdot(seen, seen)) - k * k * size))
    return k, max(rest, rounding) / math.sqrt(size) / math.sqrt(change.size)


def _explain(seen: Floats, place: _Place, factors: _Factors) -> str:
    """Return which other change is the one that was seen; empty when none is."""
    if _matches(seen, factors.change(place, place.expert, exchanged=True)):
        return "the change with the axes of rank and expert exchanged"
    for other in range(len(factors.a)):
        if other != place.expert and _matches(seen, factors.change(place, other)):
            return f"the change of expert {other}"
    return ""


def _matches(seen: Floats, change: Floats) -> bool:
    gap = seen - change
    return float(np.vdot(gap, gap)) < 0.1 * float(np.vdot(change, change))
