"""A quantised layer is much farther from the base than rounding explains.

What it does: with `--base`, dequantises some hundred outputs of every layer and compares them with
the base's weights: 4 bits leave an error of about a tenth, 8 bits of a hundredth. A layer far
beyond that, and beyond its siblings, is damaged; so is one with inputs that have no weight left.
The int8 form that a run wrote beside its model is compared with that model. Where training may lie
between base and levels, distance alone says nothing: a layer then has another direction than the
base's, another size, or is far beyond its siblings.

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
APART = 0.5
"""Distance from which a layer is beyond its siblings where training may lie between: training moves
some layers more than others, and the floor of 8 bits is below what it moves them."""
NEAR = 0.6
"""Cosine to the base's that training and few bits leave: 0.7 where both are as long as the base is,
and none at all where levels are another layer's."""
FACTORS = (0.6, 1.6)
"""Sizes along the base's direction: training adds what is nearly at right angles to it."""
DEAD_SHARE = 0.002
"""Share of inputs without weight from which on a layer counts; a single one may be rounding."""


@probe("MPD323", modes=["FM48"], severity=Severity.CRITICAL)
def check(quantisation_errors: tuple[LayerError, ...]) -> Finding | str:
    """Look for layers beyond what their bits explain."""
    errors = quantisation_errors
    middle = median(one.relative for one in errors)
    bad = [one for one in errors if not one.relative <= _limit(one)]
    beyond = [one for one in bad if not one.relative <= TIMES * middle]
    odd = beyond or bad
    if not all(one.direct for one in errors):
        beyond = [one for one in beyond if not one.relative <= APART]
        odd = beyond or [one for one in bad if not _follows(one)]
    if odd:
        return _far(odd, errors, middle)
    dead = [one for one in errors if one.dead >= max(1, DEAD_SHARE * one.inputs)]
    if dead:
        return _dead(dead, len(errors))
    if bad:
        most = max(one.relative for one in bad)
        return (
            f"{agree(len(bad), 'layer is', 'layers are')} farther from the base than rounding "
            f"leaves, of {len(errors)}, by up to {most:.2f} of its norm, and as training leaves "
            "them: pass the model that was quantised as --base to judge the rounding alone"
        )
    of = "weights they were rounded from" if errors[0].direct else "base"
    return f"{len(errors)} quantised layers are near the {of}: {middle:.3f} of the norm on average"


def _follows(one: LayerError) -> bool:
    """Whether a layer may be the base's, trained and rounded."""
    low, high = FACTORS
    return one.cosine > NEAR and low < one.factor < high


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
                expected=f"at most {_limit(one)} in {one.bits} bits"
                + ("" if one.direct else ", or the base's direction and size (trained)"),
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
