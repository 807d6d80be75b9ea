"""Weights that were to be trained did not move.

What it does: compares a hash of every trainable tensor before and after training, and notes which
of them ever received a gradient.

Why it is bad: the run looks finished, the file is there, and part of the model is untrained (FM08,
FM51).

Example: the loss is not connected to the adapter, or the optimizer was made before the adapter.

What to do: look at the tensors named: without a gradient the loss does not reach them; with one,
the optimizer does not know them or the learning rate is zero.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe

NUM_SHOWN = 5


@probe("MPD702", modes=("FM08", "FM51"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when a trainable tensor is bit-identical after training."""
    motion = observations.motion
    if motion is None:
        raise Missing("no tensors were compared: the run ended before or without training")
    quantised = {f"{layer}.weight" for layer, _, _ in observations.gptq_errors}
    wanted = motion.trainable + len(quantised)
    still = sorted({*motion.still, *(quantised - set(motion.frozen_moved))})
    if not wanted:
        raise Missing("nothing was to be trained or quantised")
    if not still:
        return f"all {wanted} tensors that were to change did"
    dry = set(motion.without_gradient)
    if motion.updates == 1 and all(name in dry and _waits(name) for name in still):
        return (
            f"{wanted - len(still)} of {wanted} tensors that were to change did in the one step "
            "whose gradients were finite; the others are factors that only a second one can reach"
        )
    return Finding(
        message=f"{len(still)} of {wanted} tensors that were to change did not",
        evidence=tuple(
            Evidence(
                what="tensor unchanged",
                tensor=name,
                found="never had a gradient" if name in dry else "had a gradient",
                expected="changed by training",
            )
            for name in still[:NUM_SHOWN]
        ),
        cause="the loss does not reach these tensors"
        if dry & set(still)
        else "the optimizer does not update these tensors",
        remedy="attach the adapter before the optimizer is made, and check the learning rate",
    )


def _waits(name: str) -> bool:
    """Whether a factor gets no gradient before its partner, which starts at zero, has moved."""
    return ".lora_A." in name or ".lora_embedding_B." in name
