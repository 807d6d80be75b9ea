"""The weights that were kept are not the best ones.

What it does: evaluates the held-out rows once more with the weights of each evaluation, and
compares the weights at the end with those of the lowest loss.

Why it is bad: early stopping that keeps the last weights instead of the best gives back the model
that it was to protect from (FM15).

Example: the best checkpoint is removed as the oldest, and the newest is loaded in its place.

What to do: compare `eval_loss` in steps.jsonl with the step whose weights were kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe
from harness.weighing.twin_evidence import as_evidence, require_twin

SMALL = 0.05
"""The least that a loss counts for."""


@probe("MPD728", modes=("FM15",), severity=Severity.CRITICAL)
def check(observations: Observations, expectation: Mapping[str, Any]) -> Finding | str:
    """Fail when an evaluation is not the twin's, or other weights than the best were kept."""
    twin = require_twin(observations, "evaluations")
    evaluates = (expectation.get("config") or {}).get("early_stopping") is not None
    if evaluates and not twin.evaluations:
        raise Missing("no evaluation was recorded")
    wrong = [
        Evidence(
            what=f"evaluation loss after step {step}",
            file="steps.jsonl",
            found=logged,
            expected=f"{wanted:.8g}, within {twin.loss_bound:g} of it",
        )
        for step, logged, wanted in twin.evaluations
        if not abs(logged - wanted) <= twin.loss_bound * max(abs(wanted), SMALL)
    ]
    wrong += [as_evidence(one) for one in twin.best]
    if not wrong:
        best = min(twin.evaluations, key=lambda one: one[1], default=None)
        if best is None:
            return "the weights at the end are those after the last step"
        return f"the weights at the end are those of the lowest loss, after step {best[0]}"
    return Finding(
        message=f"{wrong[0].what}: found {wrong[0].found}, expected {wrong[0].expected}",
        evidence=tuple(wrong[:8]),
        cause="the evaluation looks at other rows, or its best weights were not brought back",
        remedy="compare eval_loss in steps.jsonl with the step whose weights were kept",
    )
