"""What a trial is told about its cell, and the engine that it is handed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKPOINT = "checkpoint"
"""Folder of the artefact inside the folder of the cell."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """One cell, as its worker sees it."""

    folder: Path
    """The cell's folder, absolute."""
    config: dict[str, Any]
    """Every setting of `TrainingConfig` but `output`."""
    options: dict[str, Any]
    """Settings of the trial."""
    expect: dict[str, Any]
    """What must come out."""
    train: Callable[..., Any]
    """`mudpuppy.engine.train`, which only the worker may import; imported at the first call."""
    import_engine: Callable[[], None]
    """Imports the engine and its libraries, computing nothing, so that phases need not."""
