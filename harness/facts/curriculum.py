"""What a curriculum kept and rolled back: plain, frozen facts (standard library only).

Written by `harness.trials.curriculum` as the `trial` of an `Observations`, judged by MPD754 to
MPD756.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CurriculumStage:
    """One stage of a topic, or the merge of a unit."""

    topic: str
    """Name of the topic, or `unit NAME`."""
    number: int
    """Number of the topic, from 1; of a unit, that of its last one."""
    kind: str
    """`sft`, `dpo` or `merge`."""
    kept: bool
    """Whether training went on from it."""
    roots: tuple[str, ...] = ()
    """Root causes that it was rolled back for, the first one named first."""
    codes: tuple[str, ...] = ()
    """Codes of the faults."""
    message: str = ""
    """The first fault, as the run told it."""


@dataclass(frozen=True, kw_only=True)
class CurriculumRun:
    """A whole run."""

    trial: Literal["curriculum"] = "curriculum"
    """Whose form this is."""
    planted: str = ""
    """The root cause that was planted; empty for none."""
    topics: int
    """Topics of the curriculum."""
    topics_begun: int
    """Topics that were begun."""
    stages: tuple[CurriculumStage, ...]
    """In order."""
    accuracy_before: float | None = None
    """Share of all questions answered before anything."""
    accuracy_after: float | None = None
    """The same at the end; None where the run gave up."""
    voice_before: float | None = None
    """Mean voice of all answers before anything."""
    voice_after: float | None = None
    """The same at the end."""

    @property
    def rolled_back(self) -> tuple[CurriculumStage, ...]:
        """The stages that were not kept."""
        return tuple(stage for stage in self.stages if not stage.kept)
