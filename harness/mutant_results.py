"""What became of planted bugs: plain, frozen facts for the reports (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ending = Literal["caught", "caught-otherwise", "survived", "not-checked"]
"""`caught-otherwise`: every cell noticed, and none by a probe that was meant for it."""


@dataclass(frozen=True, kw_only=True)
class Catch:
    """What one cell said of one mutant."""

    cell: str
    """Name of the cell."""
    outcome: str
    """How it ended with the mutant planted."""
    codes: tuple[str, ...]
    """Probes that found something."""
    message: str
    """What it said."""
    control: str
    """How it ended without a plant."""
    control_message: str
    """What it said then; empty where it passed."""
    wall_s: float
    """Seconds it took with the mutant."""


@dataclass(frozen=True, kw_only=True)
class MutantResult:
    """What became of one mutant."""

    name: str
    """The mutant."""
    area: str
    """Part of the engine that it is in."""
    what: str
    """What it breaks."""
    caught_by: tuple[str, ...]
    """What was meant to catch it."""
    ending: Ending
    """What became of it."""
    catches: tuple[Catch, ...]
    """What each of its cells said."""
