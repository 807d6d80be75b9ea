"""Training was set up on other weights than the method's.

What it does: looks at which tensors require a gradient before the first step: adapter tensors and
no others under LoRA and QLoRA, and at least one under any method that trains.

Why it is bad: an adapter that only sets a flag lets the optimizer change the whole model, and ruins
it in a hundred steps (seed 004: 0 LoRA parameters, 512 end-of-text tokens, voice score 0).

Example: `add_adapter()` is a stub: `_has_adapter = True` and nothing converted.

What to do: convert the layers for real, and refuse to start when no trainable name holds `lora_`.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe

NUM_SHOWN = 5


@probe("MPD703", modes=("FM52", "FM50"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when base weights train under an adapter method, or nothing trains at all."""
    motion = observations.motion
    if motion is None or "gptq" in observations.expected_artefacts:
        raise Missing("the method trains nothing, or the run ended before training")
    foreign = motion.foreign_trainable
    if motion.trainable and not foreign:
        return f"{motion.trainable} trainable tensors, all of the kind the method trains"
    message = f"{len(foreign)} of {motion.trainable} trainable tensors are base weights"
    return Finding(
        message=message if motion.trainable else "no tensor is trainable",
        evidence=tuple(
            Evidence(what="trainable base weight", tensor=name, expected="frozen")
            for name in foreign[:NUM_SHOWN]
        )
        or (Evidence(what="trainable tensors", found=0, expected="at least one"),),
        cause="the adapter was not attached: only a flag was set, or the base was not frozen",
        remedy="attach a real adapter and freeze the base before the optimizer is made",
    )
