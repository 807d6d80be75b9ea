"""What examines a stage before it is kept: found by an entry point, so that it may live elsewhere.

The engine judges nothing. A package that does registers a gate under `mudpuppy.stage_gates`; this
project's own is the doctor (`harness.stage_gate`).
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from mudpuppy.errors import UsageError, near_names

GROUP = "mudpuppy.stage_gates"
"""Group of the entry points; each names a class that is called without arguments."""
USUAL = "doctor"
NONE = "none"
STACKED = "stacked-adapters"
LEFTOVER = "leftover-peft-config"
STUB = "stub-adapter"
MERGE = "corrupting-merge"
"""Root causes by which faults are told apart; the first three ended a course of 28 topics whose
voice was found to be 0.00 when the last of them was trained."""


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What a gate is shown of one stage."""

    name: str
    """Topic and stage, for messages."""
    kind: Literal["sft", "dpo", "merge"]
    """What was done."""
    folder: Path
    """What it left: an adapter, or the merged model."""
    base: Path
    """The model that the adapter sits on, or was merged into."""
    adapter: Path | None = None
    """What was merged."""
    before: Path | None = None
    """The last good state, on the same base: what answers are held against."""
    quiz: Path | None = None
    """What is asked."""
    voice: Path | None = None
    """Voice profile."""
    embeddings: Path | None = None
    """Embedding model that measures how near answers are to the examples of the profile."""
    live: Path | None = None
    """Folder in which the gate's watcher wrote down what it saw while the stage trained."""
    time_limit_s: float = 900.0
    """Time for loading and asking."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong with a stage."""

    code: str
    """Stable code."""
    name: str
    """What it is called."""
    message: str
    """What was seen, with the decisive number."""
    root: str = ""
    """The root cause that it tells of, such as `stacked-adapters`; empty for one of its own."""
    cause: str = ""
    """Why that happens."""
    remedy: str = ""
    """What to type."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a gate says of a stage."""

    faults: tuple[Fault, ...] = ()
    """Why it must not be kept, the deepest cause first; none for one that may."""
    remarks: tuple[str, ...] = ()
    """What is worth knowing and no reason."""
    checked: int = 0
    """Checks that answered."""
    unchecked: tuple[str, ...] = field(default=())
    """Checks that should have answered and could not, and why."""


class StageGate(Protocol):
    """Examines stages. Both methods are called in a process of their own."""

    def watch(self, folder: Path) -> Any:
        """Return an `engine.Watcher` that leaves in `folder` what it sees, or None."""

    def judge(self, stage: Examined) -> Verdict:
        """Examine what a stage left."""


def find_gate(name: str) -> StageGate | None:
    """Return the gate that a person named; None for `none`.

    Args:
        name: of an entry point, `package.module:Class`, or `none`.

    Raises:
        UsageError: there is none of that name, or it cannot be imported.
    """
    if name == NONE:
        return None
    try:
        kind = _import(name) if ":" in name else _load_entry(name)
        gate: StageGate = kind()
    except (ImportError, AttributeError, TypeError) as error:
        raise UsageError(
            f"the stage gate '{name}' cannot be used: {error}",
            hint="name it as package.module:Class; the class is called without arguments",
        ) from error
    for method in ("watch", "judge"):
        if not callable(getattr(gate, method, None)):
            raise UsageError(
                f"the stage gate '{name}' has no method '{method}'",
                hint="a gate has watch(folder) and judge(stage): docs/curriculum.md",
            )
    return gate


def _import(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # noqa: PTH109  # sys.path holds texts
        sys.path.append(os.getcwd())  # noqa: PTH109
    return getattr(importlib.import_module(module), attribute)


def _load_entry(name: str) -> Any:
    from importlib.metadata import entry_points  # slow to import

    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none is installed"
        raise UsageError(
            f"no stage gate is called '{name}' ({known}){near_names(name, found)}",
            hint="install the whole project (pip install -e .), name a class as "
            "--gate package.module:Class, or train without anybody looking: --gate none",
        )
    return found[name].load()
