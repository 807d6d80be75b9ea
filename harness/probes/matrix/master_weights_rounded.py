"""What trains is held in less than fp32.

What it does: looks at the type of every trainable tensor before the first step.

Why it is bad: a step changes a weight by a thousandth of it or less, and bf16 tells apart what
differs by a two-hundredth: small steps are rounded away, and the loss stops falling for no visible
reason. In fp16 the gradients cannot be unscaled (FM42).

Example: a model that is loaded in bf16 and trained as it is.

What to do: hold master weights and adapters in fp32, and compute under autocast.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe

NUM_SHOWN = 5


@probe("MPD750", modes=("FM42", "FM51"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when a trainable tensor is not held in fp32."""
    motion = observations.motion
    if motion is None or not motion.trainable:
        raise Missing("nothing trains, or the run ended before training")
    if not motion.rounded:
        return f"all {motion.trainable} trainable tensors are held in fp32"
    return Finding(
        message=f"{len(motion.rounded)} of {motion.trainable} trainable tensors are held in less "
        "than fp32",
        evidence=tuple(
            Evidence(what="trainable tensor in half precision", tensor=name, expected="fp32")
            for name in motion.rounded[:NUM_SHOWN]
        ),
        cause="the weights were loaded, or the adapter was made, in the type of the computation",
        remedy="load master weights in fp32, and cast an adapter to fp32 after attaching it",
    )
