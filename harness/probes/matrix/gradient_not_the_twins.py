"""The gradient that reached the optimizer is not that of the loss.

What it does: takes the gradient of every step from the optimizer and compares it with the twin's:
plain autograd from the same weights and rows, clipped to the norm that is asked for.

Why it is bad: a scale that is applied twice, a missing accumulation or a norm that is not clipped
changes how far each step goes, and no loss shows it at once (FM08, FM26, FM39, FM61).

Example: alpha is doubled in the forward pass: B is zero, so the first loss is right all the same.

What to do: look at the tensor named; a factor common to all is the clipping, the accumulation or a
scale.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe
from harness.weighing.twin_evidence import require_twin

TINY = 1e-6
"""The least that a norm counts for: where nothing is to be learnt, both are rounding."""


@probe("MPD723", modes=("FM08", "FM26", "FM39", "FM61"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when the gradient of a step is not the twin's."""
    twin = require_twin(observations, "gradient")
    taken = [one for one in twin.steps if one.gradient_off is not None]
    if not taken:
        raise Missing("no step was taken: every one was left out since gradients overflowed")
    wrong = [
        Evidence(
            what=f"gradient of step {one.step}: norm, and distance to the twin's over its norm",
            tensor=one.gradient_tensor,
            found=[one.norm, one.gradient_off],
            expected=[one.twin_norm, f"at most {twin.gradient_bound:g}"],
        )
        for one in taken
        if not (one.gradient_off or 0.0) <= twin.gradient_bound
    ]
    wrong += [
        Evidence(
            what=f"gradient norm of step {one.step} in the step log",
            file="steps.jsonl",
            found=one.logged_norm,
            expected=one.twin_full_norm,
        )
        for one in taken
        if not _agree(one.logged_norm, one.twin_full_norm, twin.gradient_bound)
    ]
    if not wrong:
        worst = max(one.gradient_off or 0.0 for one in taken)
        return f"the gradient of {len(taken)} steps is the twin's, within {worst:.1e}"
    return Finding(
        message=f"{wrong[0].what}: found {wrong[0].found}, and the twin's is {wrong[0].expected}",
        evidence=tuple(wrong[:8]),
        cause="the loss is scaled, accumulated or clipped otherwise, or not all of it is learnt",
        remedy="compare the norms: a factor common to all steps tells what is counted twice",
    )


def _agree(logged: float | None, wanted: float | None, bound: float) -> bool:
    if logged is None or wanted is None:
        return False
    return abs(logged - wanted) <= bound * max(wanted, TINY)
