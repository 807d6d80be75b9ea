"""The model answers differently under another attention kernel.

What it does: reads the same rows with the model's default attention and with the eager one, in fp32
where that fits into memory, and compares all logits.

Why it is bad: servers choose the kernel. What was tested under one is not what another one serves
(FM56); a wrong mask, or a NaN that one kernel hides, shows only here.

Example: under sdpa and under eager attention the logits differ by 0.4 of their size, 31 of 96 most
probable tokens change.

What to do: look at weights-nonfinite (MPD301); update transformers; serve with the kernel that was
used in training (`attn_implementation`).
"""

from __future__ import annotations

from harness.facts.forward import Consistency
from harness.findings import Finding, Severity
from harness.registry import probe
from harness.weighing.parity import judge_gap


@probe("MPD607", modes=["FM56"], severity=Severity.HIGH)
def check(consistency: Consistency) -> Finding | str:
    """Compare the eager kernel with the default one."""
    return judge_gap(
        consistency,
        "kernel",
        "logits under eager and under default attention",
        cause="a mask or a NaN that one kernel treats otherwise",
        remedy="compare with attn_implementation='eager', and look at weights-nonfinite (MPD301)",
    )
