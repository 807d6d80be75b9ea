"""The machine is in a trap of ROCm, torch or the settings around them.

What it does: judges the machine by every trap of `mud-puppy env`: the build of torch against the
GPU, the permissions, variables such as HSA_OVERRIDE_GFX_VERSION and PYTORCH_HIP_ALLOC_CONF,
integrated GPUs, and kernels that are known to fault or to compute wrongly. One result for each.

Why it is bad: most of these give no error. Training falls back to the processor, reads zeros from
memory that is in use, or gets NaN from the first layer on (FM12, FM64).

Example: `expandable_segments:True,max_split_size_mb:128` on gfx1201: live tensors read back as
zeros.

What to do: type what the fix says, then run `mud-puppy env --compute` once: it computes a little on
every GPU and compares it with the processor.
"""

from __future__ import annotations

from harness.facts.machine import JudgedTrap
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

SEVERITIES = {"blocks": Severity.CRITICAL, "warns": Severity.MEDIUM, "note": Severity.NOTE}


@probe("MPD951", modes=["FM12", "FM64"], severity=Severity.MEDIUM)
def check(trap: JudgedTrap) -> Finding | str:
    """Report a trap that the machine is in."""
    if not trap.severity:
        return f"not in {trap.code} {trap.name}"
    return Finding(
        message=f"{trap.name}: {trap.what}",
        evidence=(
            Evidence(what=trap.code, found=trap.what),
            Evidence(what="known from", found=list(trap.sources)),
        ),
        cause=trap.why,
        remedy=trap.do,
        severity=SEVERITIES.get(trap.severity, Severity.MEDIUM),
    )
