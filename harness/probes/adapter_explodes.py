"""An adapter whose factors left all bounds between two checkpoints.

What it does:
    Compares the size of every lora_B with that in the checkpoint before.

Why it is bad:
    The training diverged: the change drowns the weights it is added to, and the answers fall apart
    (FM61, FM41). Every value is finite, so nothing else says so.

Example:
    lora_B of 0.008 in checkpoint-400 and of 3.1 in checkpoint-600.

What to do:
    Go back to the checkpoint before, and train on with a smaller learning rate and clipped
    gradients (`max_grad_norm: 1.0`).
"""

from __future__ import annotations

from harness.facts.outputs import Motion
from harness.findings import Evidence, Finding
from harness.registry import probe


@probe("MPD229", modes=["FM61"])
def check(checkpoint_motion: Motion) -> Finding | str:
    """Report modules whose factor exploded since the checkpoint before."""
    found = sorted(checkpoint_motion.exploded, key=lambda one: -one[2])
    if not found:
        return f"no factor left its bounds since {checkpoint_motion.earlier}"
    module, before, now = found[0]
    return Finding(
        message=f"lora_B of {len(found)} modules exploded since {checkpoint_motion.earlier}: "
        f"{before:.2g} before, {now:.2g} now in {module}",
        evidence=tuple(
            Evidence(
                what="root mean square of lora_B",
                tensor=name,
                found=float(f"{size:.3g}"),
                expected=f"about {earlier:.2g}, as before",
            )
            for name, earlier, size in found
        ),
        cause="the learning rate is too large, or gradients were not clipped",
        remedy=f"go back to {checkpoint_motion.earlier}, and train on with a smaller learning rate "
        "and max_grad_norm 1.0",
    )
