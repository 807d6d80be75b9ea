"""Evidence from the trials other than training: the typed form of what the worker measured."""

from __future__ import annotations

from typing import TypeVar

from pydantic import TypeAdapter

from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.trials import Interop, Limits, Soak, Versions
from harness.registry import NotApplicable

T = TypeVar("T")


@provides("soak")
def find_soak(evidence: CheckpointEvidence) -> Soak:
    """Return what was measured over many cycles in one process."""
    return _read(evidence, "soak", TypeAdapter(Soak))


@provides("limits")
def find_limits(evidence: CheckpointEvidence) -> Limits:
    """Return the largest size that fits, found and predicted."""
    return _read(evidence, "limits", TypeAdapter(Limits))


@provides("interop")
def find_interop(evidence: CheckpointEvidence) -> Interop:
    """Return what foreign readers said of the artefacts."""
    return _read(evidence, "interop", TypeAdapter(Interop))


@provides("versions")
def find_versions(evidence: CheckpointEvidence) -> Versions:
    """Return what a smoke set did under other releases."""
    return _read(evidence, "versions", TypeAdapter(Versions))


def _read(evidence: CheckpointEvidence, trial: str, form: TypeAdapter[T]) -> T:
    """Return the measurements of a trial in their form.

    Raises:
        NotApplicable: the cell is of another trial, or measured nothing.
    """
    measured = evidence.get("observations").trial
    if measured.get("trial") != trial:
        raise NotApplicable(f"no {trial} trial was measured")
    return form.validate_python(measured)
