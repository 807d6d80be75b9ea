"""Evidence from a curriculum that was run, in its typed form."""

from __future__ import annotations

from pydantic import TypeAdapter

from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.curriculum import CurriculumRun
from harness.registry import NotApplicable


@provides("curriculum")
def find_curriculum(evidence: CheckpointEvidence) -> CurriculumRun:
    """Return what a curriculum kept and rolled back."""
    measured = evidence.get("observations").trial
    if measured.get("trial") != "curriculum":
        raise NotApplicable("no curriculum was run")
    return TypeAdapter(CurriculumRun).validate_python(measured)
