"""A run that was killed and resumed is another run.

What it does: trains once more, kills it by SIGKILL in the step after its first checkpoint, resumes,
and compares losses, norms, learning rates and the bytes of the weights with the run that was left
alone.

Why it is bad: a resume that loses the optimizer's state, the random state or its place in the data
goes on, and its result cannot be had again (FM14, FM18, FM58).

Example: the order of the epoch is drawn anew: some rows come twice and others never.

What to do: the first number that differs tells what was lost: the loss the data, the norm after it
the optimizer.
"""

from __future__ import annotations

from harness.findings import Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe
from harness.weighing.twin_evidence import as_evidence, require_twin


@probe("MPD727", modes=("FM14", "FM18", "FM58"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when the killed and resumed run differs from the whole one."""
    twin = require_twin(observations, "resume")
    if twin.resume is None:
        raise Missing("no run was killed and resumed: there is no checkpoint before the last step")
    if not twin.resume:
        return "killed and resumed, it is the same run bit for bit"
    wrong = [as_evidence(one) for one in twin.resume]
    return Finding(
        message=f"{wrong[0].what}: resumed {wrong[0].found}, left alone {wrong[0].expected}",
        evidence=tuple(wrong[:8]),
        cause="the checkpoint lacks a state, or it is not read back",
        remedy="compare what the checkpoint holds with what the first differing step depends on",
    )
