"""Facts about merges beyond k: what is left over, which wrong scale, whether the base fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.facts.checkpoint import Drift


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """What a merged tensor holds besides its base and k times the adapter's change."""

    kind: str
    """`low-rank` (another adapter), `plain-lora` (DoRA's magnitudes left out), `transposed`,
    `four-bit` (the values lie on a grid of at most 16 levels) or `noise`."""
    rank: int = 0
    """Rank of it, when it is low."""


@dataclass(frozen=True, kw_only=True)
class MergeStory:
    """Why a merge is not what it should be, as far as the values tell."""

    leftovers: Mapping[str, Leftover]
    """By module of the adapter: what is left over where it is more than rounding."""
    astray: Mapping[str, Leftover]
    """By tensor: the same for tensors that the adapter leaves alone and that differ."""
    scales: Mapping[str, str]
    """By module: the wrong scale that its k stands for, in words; empty when none fits."""

    def modules_of(self, *kinds: str) -> tuple[str, ...]:
        """Return the adapter's modules whose leftover is of one of the kinds."""
        return tuple(name for name, one in self.leftovers.items() if one.kind in kinds)

    @property
    def is_on_four_bits(self) -> bool:
        """Whether the tensors that the adapter leaves alone went through four bits."""
        kinds = [one.kind for one in self.astray.values()]
        return bool(kinds) and 2 * kinds.count("four-bit") > len(kinds)

    @property
    def carries_another(self) -> bool:
        """Whether what else moved is of low rank: an adapter of another stage."""
        kinds = [one.kind for one in self.astray.values()]
        return bool(kinds) and 2 * kinds.count("low-rank") > len(kinds)


@dataclass(frozen=True, kw_only=True)
class ChangeRanks:
    """Ranks of the differences between a model and its base, where no adapter is known."""

    base: str
    """Folder of the base."""
    low: Mapping[str, int]
    """Matrices whose difference is of low rank, and that rank."""
    full: tuple[str, ...]
    """Matrices whose difference has the rank of a matrix of its size."""
    others_moved: int = 0
    """Vectors, embeddings and heads that differ too: training of all weights moves them."""


@dataclass(frozen=True, kw_only=True)
class StageBase:
    """The base that is compared with, beside the one that the adapter names."""

    compared: str
    """Folder of the base that is compared with."""
    named: str
    """Folder of the base that the adapter's settings name."""
    differing: Mapping[str, float]
    """Adapted modules whose weight differs between the two, with the share of its norm."""
    modules: int
    """Adapted modules that were looked at."""


@dataclass(frozen=True, kw_only=True)
class Strangers:
    """Matrices that have nothing of the base in them, beside others that are near theirs."""

    base: str
    """Folder of the base."""
    found: Mapping[str, float]
    """By tensor: the cosine of its angle to the base's."""
    near: int
    """Matrices inside the model that are near the base's."""


@dataclass(frozen=True, kw_only=True)
class BaseFit:
    """Whether a checkpoint belongs to the base that is named."""

    base: str
    """Folder of the base."""
    named_by: str
    """Where the path of the base comes from."""
    compared: int
    """Tensors that were compared."""
    shapes: Mapping[str, str]
    """Adapter or model tensors whose shape does not fit the base, and how."""
    moved: tuple[Drift, ...]
    """Untrained tensors that differ, when so many do that the base must be another; worst first."""
    astray: tuple[Drift, ...]
    """Untrained tensors that differ in a model whose base is the right one; worst first."""
    unrelated: tuple[Drift, ...] = ()
    """Where any tensor may have been trained: matrices that have nothing of the base in them, when
    so many are that the base must be another; the least alike first."""
    frozen: int = 0
    """Tensors of a model that were compared and that its adapter leaves alone; 0 without one."""
    adapter_alone: bool = False
    """Whether an adapter's shapes were compared and no values of a model."""
    stored_fingerprint: str = ""
    """Fingerprint of the base that was written while training."""
    found_fingerprint: str = ""
    """Fingerprint of the base as it is now."""

    @property
    def fingerprint_differs(self) -> bool:
        """Whether both fingerprints are known and differ."""
        both = self.stored_fingerprint and self.found_fingerprint
        return bool(both) and self.stored_fingerprint != self.found_fingerprint
