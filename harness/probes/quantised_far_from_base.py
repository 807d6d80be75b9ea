"""A quantised layer is much farther from the base than rounding explains.

What it does: with `--base`, dequantises some hundred outputs of every layer and compares them with
the base's weights: 4 bits leave an error of about a tenth, 8 bits of a hundredth. A layer far
beyond that, and beyond its siblings, is damaged; so is one with inputs that have no weight left.

Why it is bad: the layer computes something else (FM48). Groups in the wrong order, scales of
another layer and inputs that the calibration never saw all look right by shape.

Example: `model.layers.3.self_attn.o_proj` 0.97 from the base, the median layer 0.11.

What to do: quantise the model again; if inputs are dead, with more and more varied calibration
texts. If every layer is far away, check that the base is the model that was quantised.
"""

from __future__ import annotations

from statistics import median

from harness.facts.quantised import LayerError
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import probe

FLOORS = {2: 1.2, 3: 0.7, 4: 0.4, 8: 0.15}
"""Errors that no writer exceeds, by bits: rounding to nearest leaves 0.6, 0.25, 0.12 and 0.03 (in
fp8), and a fine-tune before the quantisation adds some hundredths."""
TIMES = 3.0
"""How many times the median error a layer must have as well."""
DEAD_SHARE = 0.002
"""Share of inputs without weight from which on a layer counts; a single one may be rounding."""


@probe("MPD323", modes=["FM48"], severity=Severity.CRITICAL)
def check(quantisation_errors: tuple[LayerError, ...]) -> Finding | str:
    """Look for layers beyond what their bits explain."""
    errors = quantisation_errors
    middle = median(one.relative for one in errors)
    bad = [one for one in errors if not one.relative <= _limit(one)]
    odd = [one for one in bad if not one.relative <= TIMES * middle] or bad
    if odd:
        return _far(odd, errors, middle)
    dead = [one for one in errors if one.dead >= max(1, DEAD_SHARE * one.inputs)]
    if dead:
        return _dead(dead, len(errors))
    return f"{len(errors)} quantised layers are near the base: {middle:.3f} of its norm on average"


def _limit(one: LayerError) -> float:
    return FLOORS.get(one.bits, FLOORS[4])


def _far(odd: list[LayerError], errors: tuple[LayerError, ...], middle: float) -> Finding:
    worst = max(odd, key=lambda one: one.relative)
    everywhere = len(odd) > len(errors) / 2
    return Finding(
        message=f"{agree(len(odd), 'layer is', 'layers are')} far from the base, of {len(errors)}: "
        f"{worst.name} by {worst.relative:.2f} of its norm, the median layer by {middle:.2f}",
        evidence=tuple(
            Evidence(
                what="distance from the base over its norm",
                tensor=one.name,
                found=round(one.relative, 3),
                expected=f"at most {_limit(one)} in {one.bits} bits",
            )
            for one in odd
        ),
        cause="the base is not the model that was quantised, or the bits and groups declared are "
        "not those that were used"
        if everywhere
        else "scales, zeros or groups of these layers are damaged, or another layer's",
        remedy="pass the model that was quantised as --base"
        if everywhere
        else "quantise the model again, or fetch the file again",
    )


def _dead(dead: list[LayerError], count: int) -> Finding:
    first = max(dead, key=lambda one: one.dead / one.inputs)
    return Finding(
        message=f"{agree(len(dead), 'layer has', 'layers have')} inputs without weight, of "
        f"{count}: {first.dead:,} of {first.inputs:,} in {first.name}, where the base has weights",
        evidence=tuple(
            Evidence(what="inputs without weight", tensor=one.name, found=one.dead, expected=0)
            for one in dead
        ),
        cause="the calibration texts never used these inputs, and the writer dropped them",
        remedy="quantise again with more and more varied calibration texts",
    )
