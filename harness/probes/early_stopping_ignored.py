"""Training was to stop early and did not.

What it does:
    Where the scenario says that the run must stop early, looks at how many steps it took.

Why it is bad:
    An early-stopping test that never stops proves nothing, and a run that ignores the setting
    overfits while its settings say that it cannot.

Example:
    The callback is added and no evaluation ever runs.

What to do:
    Check that samples are held out, and that evaluations happen (`eval_loss` in steps.jsonl).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.findings import Evidence, Finding
from harness.observations import Observations
from harness.registry import Missing, probe


@probe("MPD709", modes=("FM15",))
def check(observations: Observations, expectation: Mapping[str, Any]) -> Finding | str:
    """Fail when a run that must stop early went on to its last step."""
    if not expectation.get("stops_early"):
        raise Missing("the scenario does not ask for an early stop")
    if observations.ending != "trained":
        raise Missing("the run did not end by itself")
    steps = len(observations.losses)
    planned = int(expectation.get("max_steps") or 0)
    if 0 < steps < planned:
        return f"stopped after {steps} of {planned} steps"
    return Finding(
        message=f"took {steps} of {planned} steps and should have stopped before the last",
        evidence=(
            Evidence(
                what="optimizer steps",
                file="steps.jsonl",
                found=steps,
                expected=f"fewer than {planned}",
            ),
        ),
        cause="no evaluation ran, or its result was not looked at",
        remedy="check --eval-fraction and --eval-steps, and eval_loss in steps.jsonl",
    )
