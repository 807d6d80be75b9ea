"""The packed weights are not the base's where others read them.

What it does: unpacks every layer of a GPTQ folder by the format that its config declares, and
compares the levels with the base's weights: on average they must lie where the weights lie, and the
levels of a group must span what its weights span.

Why it is bad: zero points that are stored by one version of the format and read by another shift
every weight by a level. The own loader may agree with the own writer; everybody else's gives noise
(FM47).

Example: zeros stored as 8 under `checkpoint_format: gptq`, whose readers add 1. Or scales that are
a fifth too large: GPTQ still beats rounding on the same grid, and both lose precision.

What to do: store one less than the zero under version 1, or declare `gptq_v2`.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations, PackedLayer
from harness.registry import Missing, probe

MAX_BIAS = 0.25
"""Levels by which a layer may lie beside the base on average: rounding is as often up as down."""
REACH = (0.9, 1.1)
"""Span of a group's levels over that of its weights, in the median of a layer (0.999 to 1.004 was
measured; the spread error of earlier columns moves a single group's by more)."""
NUM_SHOWN = 5


@probe("MPD751", modes=("FM47", "FM48"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when the levels of a layer lie beside its weights."""
    layers = observations.packed
    if not layers:
        raise Missing("nothing was packed, or the folder was not measured")
    shifted = [one for one in layers if not abs(one.bias) <= MAX_BIAS]
    if shifted:
        return _describe_shifted(shifted, len(layers))
    unfit = [one for one in layers if not REACH[0] <= one.reach <= REACH[1]]
    if unfit:
        return _describe_unfit(unfit, len(layers))
    largest = max(abs(one.bias) for one in layers)
    reach = max((one.reach for one in layers), key=lambda x: abs(x - 1))
    return (
        f"{len(layers)} layers, at most {largest:.2f} levels beside the base on average; their "
        f"levels span {reach:.3f} of its weights' range"
    )


def _describe_shifted(shifted: Sequence[PackedLayer], count: int) -> Finding:
    return Finding(
        message=f"{len(shifted)} of {count} layers lie beside the base's weights, by "
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


def _describe_unfit(unfit: Sequence[PackedLayer], count: int) -> Finding:
    return Finding(
        message=f"the levels of {len(unfit)} of {count} layers "
        f"span {unfit[0].reach:.2f} of the range of the base's weights",
        evidence=tuple(
            Evidence(
                what="span of the levels over that of the weights, median of the groups",
                tensor=one.name,
                found=one.reach,
                expected=f"{REACH[0]} to {REACH[1]}",
            )
            for one in unfit[:NUM_SHOWN]
        ),
        cause="scales that do not come from the range of their group's weights",
        remedy="compare scale * (2^bits - 1) of a group with its largest less its smallest weight",
    )
