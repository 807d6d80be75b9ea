"""Some samples are trained on again and again while others wait.

What it does: counts how often each row of the dataset came in the batches that the model was given.
No row may come more often than the passes over the whole set explain.

Why it is bad: a sampler that repeats a batch, or a loader that starts anew after every
accumulation, learns a few rows by heart and the rest never; the loss falls all the better (FM15,
FM39).

Example: 16 rows were seen in 4 steps, and they were the same 4 each time.

What to do: compare the order of the batches with the sampler's.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe


@probe("MPD720", modes=("FM15", "FM39"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when rows came more often than the passes explain."""
    labels = observations.labels
    if labels is None:
        raise Missing("no training batch was seen")
    if not labels.checked:
        raise Missing("how often the dataset holds a row is not known: use JSONL")
    if not labels.rows_overused:
        return f"{labels.rows} rows came as often as the passes over the set explain"
    return Finding(
        message=f"{labels.rows_overused} rows came more often than the passes explain",
        evidence=(
            Evidence(
                what="rows that came too often",
                found=labels.rows_overused,
                expected="none",
            ),
        ),
        cause="batches are repeated, or the order starts anew in the middle of a pass",
        remedy="compare the order of the batches with the sampler's",
    )
