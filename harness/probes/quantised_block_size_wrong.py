"""Levels in few bits were made with another block size than the one that is stored.

What it does: the number of `absmax` gives the block size that was written; it must be the one that
the layer's state declares. And since a block's largest weight is its scale, every block holds an
outermost level: blocks that hold none were made in other sizes.

Why it is bad: every weight is multiplied with a neighbour's scale. The layer is plausible noise,
and which reader notices depends on the vendor: bitsandbytes used blocks of 128 on ROCm where CUDA
uses 64, and kernels for one read the other (FM64).

Example: 4,096 levels, 32 absmax, and `"blocksize": 64` in the state: the absmax are for 128.

What to do: quantise the 16-bit model again on the machine that serves it, or set the block size
that was really used.
"""

from __future__ import annotations

from harness.facts.quantised import Quantised
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe


@probe("MPD322", modes=["FM64"], severity=Severity.CRITICAL)
def check(quantised: Quantised) -> Finding | str:
    """Compare stored and real block sizes."""
    kinds = ("bnb-4bit", "mudpuppy-blocks", "int4")
    layers = [layer for layer in quantised.layers if layer.kind in kinds]
    if not layers:
        raise NotApplicable("no layer is stored in blocks of levels")
    flaws = [flaw for layer in layers for flaw in layer.flaws if flaw.kind == "block"]
    if not flaws:
        return f"the block sizes of {len(layers)} layers are those that are stored"
    first = flaws[0]
    return Finding(
        message=f"{len(flaws)} of {len(layers)} layers were made in other blocks: {first.what} in "
        f"{first.tensor}: {first.found}, expected {first.expected}",
        evidence=tuple(
            Evidence(what=one.what, tensor=one.tensor, found=one.found, expected=one.expected)
            for one in flaws
        ),
        cause="quantised by a build for other hardware (blocks of 128 on ROCm, 64 on CUDA), or the "
        "scales of another save",
        remedy="quantise the 16-bit model again with one block size, and save levels, scales and "
        "state together",
    )
