"""Evidence from the stages of an adapter's life, in its typed form."""

from __future__ import annotations

from pydantic import TypeAdapter

from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.lifecycle import Lifecycle
from harness.registry import NotApplicable


@provides("lifecycle")
def find_lifecycle(evidence: CheckpointEvidence) -> Lifecycle:
    """Return what every stage of a lifecycle left behind."""
    measured = evidence.get("observations").trial
    if measured.get("trial") != "lifecycle":
        raise NotApplicable("no lifecycle was followed")
    return TypeAdapter(Lifecycle).validate_python(measured)
