"""The weights are not where their gradients take them.

What it does: repeats every update with plain AdamW from the run's own gradients, and looks at the
weights where nobody should touch them: before the first step, between two steps, and in the saved
file.

Why it is bad: an optimizer that forgets its state, updates a copy or leaves a tensor out trains
another model than its log tells (FM08, FM14, FM41, FM55).

Example: with its states on the host the optimizer steps there, and the new weights do not come
back.

What to do: look at the first step and the tensor named: who else writes to it, and who does not?
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe
from harness.weighing.twin_evidence import as_evidence, require_twin


@probe("MPD726", modes=("FM08", "FM14", "FM41", "FM55"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when weights are not where AdamW takes them, or change where nothing is learnt."""
    twin = require_twin(observations, "weights")
    taken = [one for one in twin.steps if one.weights_off is not None]
    wrong = [as_evidence(one) for one in twin.tensors]
    wrong += [
        Evidence(
            what=f"update of step {one.step}: distance to AdamW's over its norm",
            tensor=one.weights_tensor,
            found=one.weights_off,
            expected=f"at most {one.weights_bound:.1e}",
        )
        for one in taken
        if not (one.weights_off or 0.0) <= (one.weights_bound or 0.0)
    ]
    if not wrong and not taken:
        raise Missing("no update was compared: no step was replayed, or gradients overflowed")
    if not wrong:
        worst = max(one.weights_off or 0.0 for one in taken)
        return f"{len(taken)} updates are AdamW's, within {worst:.1e}"
    return Finding(
        message=f"{wrong[0].what}: found {wrong[0].found}, expected {wrong[0].expected}",
        evidence=tuple(wrong[:8]),
        cause="the optimizer has other states or tensors, or somebody else writes to them",
        remedy="look at the first step and the tensor named",
    )
