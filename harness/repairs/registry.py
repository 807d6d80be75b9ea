"""The repairs by name, gathered from the files of this folder, and what each of them mends."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from harness.evidence.source import CheckpointEvidence
from harness.repairs.draft import Draft

Apply = Callable[[Draft, CheckpointEvidence], None]
"""Changes a draft, or raises `NotCertain` before it has changed anything."""
EARLY, NORMAL, LATE = 0, 1, 2
"""Repairs that change which files there are come first, those that list tensors last."""


@dataclass(frozen=True, kw_only=True)
class Repair:
    """One repair."""

    name: str
    """Its name, with dashes."""
    mends: tuple[str, ...]
    """Names of the probes whose findings it mends."""
    turn: int
    """When it is made."""
    apply: Apply
    """Makes it."""


_REPAIRS: dict[str, Repair] = {}


def repair(*mends: str, turn: int = NORMAL) -> Callable[[Apply], Apply]:
    """Register the decorated function, named for what it does, as a repair of these findings."""

    def mark(apply: Apply) -> Apply:
        name = apply.__name__.replace("_", "-")
        if name in _REPAIRS and _REPAIRS[name].apply.__module__ != apply.__module__:
            raise ValueError(f"two repairs are called {name}")
        _REPAIRS[name] = Repair(name=name, mends=mends, turn=turn, apply=apply)
        return apply

    return mark


@cache
def load_repairs() -> Sequence[Repair]:
    """Return every repair in the order in which they are made."""
    package = importlib.import_module("harness.repairs.kinds")
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda one: one.name):
        importlib.import_module(f"harness.repairs.kinds.{info.name}")
    return sorted(_REPAIRS.values(), key=lambda one: (one.turn, one.name))
