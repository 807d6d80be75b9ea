"""The loss is not what the rows cost.

What it does: computes the loss of every step once more in plain torch, from the run's own weights:
one row after the other, without padding or packing, by the formula of the method's paper, divided
by all labels of the step. For GRPO also asks for the rewards again and works out the advantages.

Why it is bad: a loss that counts the wrong tokens, lets packed rows look at each other or divides
by the wrong number trains something else, while it falls as nicely as the right one (FM09, FM38,
FM39, FM56).

Example: with gradient accumulation each micro-batch is divided by its own labels: short ones weigh
more.

What to do: compare the two losses named with the code that computes the loss of this method.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import probe
from harness.weighing.twin_evidence import as_evidence, require_twin

SMALL = 0.05
"""The least that a loss counts for: that of GRPO is around zero, a difference of larger numbers."""


@probe("MPD722", modes=("FM09", "FM38", "FM39", "FM56"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when the loss of a step, or what enters it, is not the twin's."""
    twin = require_twin(observations, "loss")
    steps = [(one, one.twin_loss) for one in twin.steps if one.twin_loss is not None]
    wrong = [
        Evidence(
            what=f"loss of step {one.step}{where}",
            found=found,
            expected=f"{wanted:.8g}, within {twin.loss_bound:g} of it",
        )
        for one, wanted in steps
        for where, found in (("", one.loss), (" in the step log", one.logged_loss))
        if found is not None and _is_off(found, wanted, one.loss_size, twin.loss_bound)
    ]
    wrong += [as_evidence(one) for one in twin.rewards]
    if not wrong:
        worst = max(_difference(one.loss, wanted, one.loss_size) for one, wanted in steps)
        return f"the loss of {len(steps)} steps is the twin's, within {worst:.1e}"
    return Finding(
        message=f"{wrong[0].what} is {wrong[0].found}, and the twin's {wrong[0].expected}",
        evidence=tuple(wrong[:8]),
        cause="the loss is computed over other tokens, divided by another number or made otherwise",
        remedy="compare the step named with the loss of the method",
    )


def _difference(found: float, wanted: float, size: float) -> float:
    """Return the difference relative to the twin's loss and its parts, at least `SMALL`."""
    return abs(found - wanted) / max(abs(wanted), size, SMALL)


def _is_off(found: float, wanted: float, size: float, bound: float) -> bool:
    """Whether a loss is beyond the bound; one that is no number always is."""
    return not _difference(found, wanted, size) <= bound
