"""Facts about the checkpoints of one run beside each other, and about what a run goes on from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A checkpoint beside the one before it in the same output, by headers and names."""

    earlier: str
    """Name of the one before."""
    name: str
    """Name of this one."""
    added: tuple[str, ...]
    """Tensors that only this one holds."""
    larger: tuple[str, ...]
    """Tensors that have more numbers here."""
    folders: tuple[str, ...]
    """Folders of further adapters that only this one holds."""
    bytes_before: int
    """Bytes of the weights before."""
    bytes_now: int
    """Bytes of the weights now."""
    tensors: int
    """Tensors now."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """What moved between two checkpoints of one run, by the values."""

    earlier: str
    """Name of the one before."""
    compared: int
    """Tensors that were compared; for whole models the first few that differ end it."""
    is_identical: bool
    """Whether every tensor holds the same bytes."""
    still: tuple[str, ...]
    """Modules of an adapter both of whose factors are the same, while others moved."""


@dataclass(frozen=True, kw_only=True)
class ResumeSet:
    """What a trainer needs to go on from a checkpoint."""

    present: tuple[str, ...]
    """Of `optimizer`, `scheduler`, `random state` and `trainer state`, those that are there."""
    absent: tuple[str, ...]
    """Those that are not."""
    empty: tuple[str, ...]
    """Files of them that hold nothing."""
    sharded: bool
    """Whether DeepSpeed or FSDP keeps them in a form of its own."""


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """What an optimizer's file holds, listed without loading it."""

    file: str
    """Its name."""
    parameters: int
    """Parameters in its groups."""
    shapes: tuple[tuple[int, ...], ...]
    """Shape of the first moment of every parameter that has one."""
