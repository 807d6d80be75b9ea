"""TensorBoard shows other losses than the step log holds.

What it does: reads the event files back by TensorBoard's own reader and compares every step's loss
with steps.jsonl.

Why it is bad: people decide by the curve that they look at: one that is empty, or of another run,
or shifted by a step, decides wrongly, and nothing in the model tells.

Example: `--report-to tensorboard` was asked for, and the folder of events is empty.

What to do: look for events.out.tfevents files below the output folder.
"""

from __future__ import annotations

import math

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe

SAME = 1e-5
"""Relative difference that the fp32 of event files explains."""


@probe("MPD719", modes=("FM15",), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when steps are missing or losses differ."""
    logged = observations.logged_losses
    if logged is None or observations.ending != "trained":
        raise Missing("no TensorBoard log was asked for")
    wanted = list(enumerate(observations.losses, start=1))
    shown = dict(logged)
    wrong = [
        (step, loss)
        for step, loss in wanted
        if step not in shown or not math.isclose(shown[step], loss, rel_tol=SAME, abs_tol=1e-7)
    ]
    if wanted and not wrong and len(logged) == len(wanted):
        return f"TensorBoard shows the losses of all {len(wanted)} steps"
    step, loss = wrong[0] if wrong else (0, 0.0)
    return Finding(
        message=f"TensorBoard shows {len(logged)} losses, {len(wrong)} of {len(wanted)} steps are "
        "missing or differ",
        evidence=(
            Evidence(
                what=f"loss of step {step}",
                file="runs/",
                found=shown.get(step),
                expected=loss,
            ),
        ),
        cause="the reporter is not connected, or counts steps otherwise",
        remedy="look for events.out.tfevents files below the output folder",
    )
