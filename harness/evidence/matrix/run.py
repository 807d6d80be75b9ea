"""Evidence from a matrix run: what the worker observed, and what the scenario expected.

Both come from the judge, which knows the run's folder; a checkpoint by itself has neither.
"""

from __future__ import annotations

from typing import NoReturn

from harness.evidence.source import CheckpointEvidence, provides
from harness.registry import NotApplicable

REASON = "no training run was watched: only mudpuppy-pressure measures one"


@provides("observations")
def find_observations(evidence: CheckpointEvidence) -> NoReturn:
    """Say that a checkpoint by itself brings no observations."""
    del evidence
    raise NotApplicable(REASON)


@provides("expectation")
def find_expectation(evidence: CheckpointEvidence) -> NoReturn:
    """Say that a checkpoint by itself brings no expectation."""
    del evidence
    raise NotApplicable(REASON)
