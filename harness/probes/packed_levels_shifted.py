"""The packed weights are not the base's where others read them.

What it does:
    Unpacks every layer of a GPTQ folder by the format that its config declares, and compares the
    levels with the base's weights: on average they must lie where the weights lie.

Why it is bad:
    Zero points that are stored by one version of the format and read by another shift every weight
    by a level. The own loader may agree with the own writer; everybody else's gives noise (FM47).

Example:
    Zeros stored as 8 under `checkpoint_format: gptq`, whose readers add 1.

What to do:
    Store one less than the zero under version 1, or declare `gptq_v2`.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding
from harness.observations import Observations
from harness.registry import Missing, probe

MAX_BIAS = 0.25
"""Levels by which a layer may lie beside the base on average: rounding is as often up as down."""
NUM_SHOWN = 5


@probe("MPD751", modes=("FM47", "FM48"))
def check(observations: Observations) -> Finding | str:
    """Fail when the levels of a layer lie beside its weights."""
    layers = observations.packed
    if not layers:
        raise Missing("nothing was packed, or the folder was not measured")
    shifted = [one for one in layers if not abs(one.bias) <= MAX_BIAS]
    if not shifted:
        largest = max(abs(one.bias) for one in layers)
        return f"{len(layers)} layers, at most {largest:.2f} levels beside the base on average"
    return Finding(
        message=f"{len(shifted)} of {len(layers)} layers lie beside the base's weights, by "
        f"{shifted[0].bias:.2f} levels",
        evidence=tuple(
            Evidence(
                what="mean distance from the base, in levels",
                tensor=one.name,
                found=one.bias,
                expected=f"within {MAX_BIAS}",
            )
            for one in shifted[:NUM_SHOWN]
        ),
        cause="zero points, the order of the levels in a word, or the groups are another format's",
        remedy="write what checkpoint_format declares, and open it with someone else's code",
    )
