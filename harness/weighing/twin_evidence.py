"""What the probes of the twin share: where its findings are, and how they become evidence."""

from __future__ import annotations

from harness.findings import Evidence
from harness.observations import Observations
from harness.observations_twin import Deviation, TwinFacts
from harness.registry import Missing


def require_twin(observations: Observations, part: str) -> TwinFacts:
    """Return what the twin found.

    Raises:
        Missing: the run did not end by itself, there was no twin, or it left out this part.
    """
    if observations.ending != "trained":
        raise Missing("the run did not end by itself")
    twin = observations.twin
    if twin is None:
        raise Missing("no twin was trained beside the run, or it did not come to its end")
    if part in twin.unchecked:
        raise Missing(f"not compared: {twin.unchecked[part]}")
    if part in ("loss", "gradient", "rate") and not twin.steps:
        raise Missing("not compared: no step was replayed")
    return twin


def as_evidence(one: Deviation) -> Evidence:
    """Return a deviation in the form of all findings."""
    where = "" if one.step is None else f" (step {one.step})"
    return Evidence(
        what=f"{one.what}{where}", tensor=one.tensor, found=one.found, expected=one.expected
    )
