"""The story of a run: topics, stages, and what was kept; what reports are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mudpuppy.pipelines.curriculum.gates import Fault, Verdict

STOPPED = "stopped"
"""How the ending of a run begins that gave up."""
Scores = dict[str, dict[str, Any]]
"""Accuracy, voice and counts by group; `final` is all that was asked."""


@dataclass(kw_only=True)
class Stage:
    """One stage of a topic, or the merge of a unit."""

    kind: str
    """`sft`, `dpo` or `merge`."""
    before: Scores
    """Scores of the topic's questions before it."""
    after: Scores
    """Scores after it; those before it where it was rolled back."""
    measured: Scores | None = None
    """What it scored, kept or not; None where nothing was asked."""
    training: dict[str, Any] = field(default_factory=dict)
    """What the run or the merge wrote down."""
    verdict: Verdict = field(default_factory=Verdict)
    """What the gate said."""
    faults: tuple[Fault, ...] = ()
    """Why it was rolled back."""
    kept: bool = False
    """Whether training went on from it."""
    folder: str = ""
    """What it left, relative to the run's folder."""


@dataclass(kw_only=True)
class TopicStory:
    """One topic."""

    number: int
    name: str
    before: Scores
    """Scores of its questions before its first stage."""
    after: Scores
    """Scores after its last kept stage."""
    stages: list[Stage] = field(default_factory=list)
    """In order."""


@dataclass(kw_only=True)
class Story:
    """A whole run."""

    name: str
    model: str
    start: Scores
    """Scores of all questions before anything."""
    end: Scores | None = None
    """Scores of all questions after everything; None where the run is not at its end."""
    topics: list[TopicStory] = field(default_factory=list)
    """Those that were begun."""
    units: list[dict[str, Any]] = field(default_factory=list)
    """`name`, `scores` of everything taught so far, and the `stages` of its merge."""
    ending: str = ""
    """`finished`, or `stopped: ...`."""
    model_at_end: dict[str, Any] = field(default_factory=dict)
    """`model` and `adapter` that the run ends with."""
    in_a_row: int = 0
    """Stages that failed one after the other for the same reason."""
    last_reason: str = ""
    """Root cause of the last one that failed; its code where that tells of none."""

    @property
    def stages(self) -> list[tuple[str, Stage]]:
        """Every stage with the name of its topic or unit, in order."""
        of_topics = [(topic.name, stage) for topic in self.topics for stage in topic.stages]
        return of_topics + [
            (f"unit {unit['name']}", stage) for unit in self.units for stage in unit["stages"]
        ]

    @property
    def rolled_back(self) -> list[tuple[str, Stage]]:
        """The stages that were not kept."""
        return [(name, stage) for name, stage in self.stages if not stage.kept]
