"""Evidence from a disturbed run: what the fault trial saw, in its typed form."""

from __future__ import annotations

from pydantic import TypeAdapter

from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.faults import Fault
from harness.registry import NotApplicable


@provides("fault")
def find_fault(evidence: CheckpointEvidence) -> Fault:
    """Return what a fault did to a run and how that went on."""
    measured = evidence.get("observations").trial
    if measured.get("trial") != "fault":
        raise NotApplicable("no fault was done to this run")
    return TypeAdapter(Fault).validate_python(measured)
