"""The answers depend on the precision.

What it does: reads the same rows in the stored type and in fp32 and compares the distributions.

Why it is bad: nothing is broken, but values lie near the limits of the type: another kernel or
another GPU will answer differently, and fp16 may overflow (FM12).

Example: between bf16 and fp32 the distributions differ by 0.3 nats per token.

What to do: serve in the type that the model was trained in, and not in fp16 when that was bf16.
"""

from __future__ import annotations

from harness.facts.forward import Consistency
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

KL = 0.2
"""Nats per token; rounding to bf16 costs a hundredth of it in trained models of any size."""
FLIPS = 0.25
"""Share of positions whose most probable token changes."""


@probe("MPD615", modes=["FM12"], severity=Severity.NOTE)
def check(consistency: Consistency) -> Finding | str:
    """Compare the stored type with fp32."""
    gap = consistency.find("dtype")
    if gap is None:
        raise NotApplicable("the model is stored in fp32, or does not fit into memory in fp32")
    if gap.kl < KL or gap.flips < FLIPS * gap.positions:
        return f"{gap.precision} and fp32 differ by {gap.kl:.2g} nats per token"
    return Finding(
        message=f"{gap.precision} and fp32 differ by {gap.kl:.2g} nats per token",
        evidence=(
            Evidence(what="KL divergence, nats per token", found=round(gap.kl, 4)),
            Evidence(what="changed tokens", found=gap.flips, expected=f"of {gap.positions} few"),
        ),
        cause="large activations or weights near the limits of the type",
        remedy="serve in the type the model was trained in; avoid fp16",
    )
