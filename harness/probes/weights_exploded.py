"""Weights that are many times larger, or smaller, than in the base.

What it does: compares the norm of every tensor with that of the same tensor in the base.

Why it is bad: fine-tuning moves weights by percents. A factor of ten means that training ran away
(FM61), a scale was applied twice, or a quantised tensor was read as if it were not.

Example: `model.layers.0.mlp.down_proj.weight: 38 times the norm of the base`, after 900 steps at a
learning rate of 1e-2 without clipping.

What to do: go back to an older checkpoint; lower the learning rate and clip gradients.
"""

from __future__ import annotations

import math

from harness.facts.checkpoint import Drift, Drifts
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

FACTOR = 9.5
"""Ratio of norms, either way, that no fine-tuning explains: full it moves them by percents, and a
power of ten leaves room for vectors that start near zero; it is below ten for what was multiplied
by ten and rounded."""


@probe("MPD307", modes=["FM61"], severity=Severity.CRITICAL)
def check(drifts: Drifts) -> Finding | str:
    """Compare the norms of all tensors with those of the base."""
    if not drifts.tensors:
        raise Missing("no floating-point tensor can be compared with the base")
    # A tensor that became all zero is weights-all-zero's finding.
    ratios = [one for one in drifts.tensors if one.norm_ratio != 0]
    bad = [one for one in ratios if math.isfinite(one.norm_ratio) and _factor(one) > FACTOR]
    if not bad:
        return f"the norms of {len(drifts.tensors)} tensors are within {FACTOR:g} times the base's"
    bad.sort(key=lambda one: (-_factor(one), one.name))
    return Finding(
        message=f"{len(bad)} tensors have lost the scale of the base: {bad[0].name} has "
        f"{bad[0].norm_ratio:.3g} times its norm",
        evidence=tuple(
            Evidence(
                what="norm relative to the base",
                tensor=one.name,
                found=one.norm_ratio,
                expected=f"between {1 / FACTOR:g} and {FACTOR:g}",
            )
            for one in bad
        ),
        cause="training diverged, or a scale was applied twice",
        remedy="go back to an older checkpoint; train with a lower learning rate and clipping",
    )


def _factor(one: Drift) -> float:
    return max(one.norm_ratio, 1 / one.norm_ratio)
