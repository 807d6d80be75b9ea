"""Training moved weights that were to stay as they are.

What it does: compares a hash of every frozen tensor before the first and after the last step. Under
GPTQ the quantised layers may change, and nothing else.

Why it is bad: a "LoRA" run that drifts its base saves an adapter that fits a model nobody has: on
the real base it is wrong, and nothing says so (FM52).

Example: a custom adapter wrapper sets a flag and leaves `requires_grad` on for the base.

What to do: freeze the base before the optimizer is made, and train again: the adapter cannot be
mended.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe

NUM_SHOWN = 5


@probe("MPD701", modes=("FM52",), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when a frozen tensor is not bit-identical."""
    motion = observations.motion
    if motion is None:
        raise Missing("no tensors were compared: the run ended before or without training")
    quantised = {f"{layer}.weight" for layer, _, _ in observations.gptq_errors}
    moved = [name for name in motion.frozen_moved if name not in quantised]
    if not moved:
        return f"{motion.frozen - len(motion.frozen_moved)} frozen tensors are bit-identical"
    return Finding(
        message=f"{len(moved)} of {motion.frozen} frozen tensors changed",
        evidence=tuple(
            Evidence(what="frozen tensor changed", tensor=name, expected="bit-identical")
            for name in moved[:NUM_SHOWN]
        ),
        cause="the base was not frozen, or something wrote into it while training ran",
        remedy="freeze the base before the optimizer is made, then train again",
    )
