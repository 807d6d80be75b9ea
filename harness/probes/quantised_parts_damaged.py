"""Parts of a quantised layer that its format does not allow.

What it does: of every layer in few bits (GPTQ, AWQ, bitsandbytes, levels with scales, MXFP4, int4)
it checks that all parts are there, that their shapes follow from bits and group size, that scales
are finite, above zero and about as large as in the other layers, that groups (`g_idx`) are in range
and in the order that desc_act declares, and that the table of levels is that of its type.

Why it is bad: levels without the right scales are noise, for one group or a whole layer (FM48). A
part that is absent leaves the layer to random values (FM33). Nothing is raised: readers multiply
what they find.

Example: `model.layers.7.mlp.down_proj.scales: 12 that are NaN or infinite`, after an overflow in
fp16; or scales for groups of 64 where `group_size: 128` is declared.

What to do: quantise the layer again, or fetch the file again. If only the settings are wrong (bits,
group_size, desc_act), correct them in config.json and quantize_config.json.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from statistics import median

from harness.facts.quantised import Flaw, Quantised, QuantisedLayer
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import probe

TIMES = 20.0
"""How many times its siblings' a layer's mean scale may be; three to eight is found in the first
and last layers of real models."""
SIBLINGS = 3
"""Layers of one kind that are needed to say what is usual."""
_NUMBER = re.compile(r"\.\d+\.")
ELSEWHERE = ("block",)
"""Flaws that another probe reports."""
_CAUSES = {
    "part": "the save or the conversion was partial, or keys were renamed",
    "shape": "bits or group_size are those of another model, or parts of two models were mixed",
    "scale": "an overflow in fp16 while quantising, or damage in a copy",
    "group": "desc_act or the group size are not those of the quantisation, or g_idx was damaged",
    "table": "damage in a copy, or a table of another type",
}


@probe("MPD321", modes=["FM48", "FM33"], severity=Severity.CRITICAL)
def check(quantised: Quantised) -> Finding | str:
    """Report what the formats of the layers do not allow."""
    flaws = [flaw for flaw in quantised.flaws if flaw.kind not in ELSEWHERE]
    flaws += _odd_scales(quantised.layers)
    kinds = sorted({layer.kind for layer in quantised.layers})
    if not flaws:
        return f"the parts of {len(quantised.layers)} {'/'.join(kinds)} layers fit each other"
    first = flaws[0]
    expected = "" if first.expected is None else f", expected {first.expected}"
    hit = len({_layer_of(flaw, quantised.layers) for flaw in flaws})
    return Finding(
        message=f"{agree(hit, 'layer is', 'layers are')} damaged, of {len(quantised.layers)}: "
        f"{first.what} of {first.tensor}: {first.found}{expected}",
        evidence=tuple(
            Evidence(what=one.what, tensor=one.tensor, found=one.found, expected=one.expected)
            for one in flaws
        ),
        cause=_CAUSES.get(first.kind, "damage in a copy"),
        remedy="quantise the model again, or fetch the file again; if the settings are wrong, "
        f"correct them in {quantised.source or 'config.json'}",
    )


def _odd_scales(layers: Iterable[QuantisedLayer]) -> list[Flaw]:
    """Return the layers whose scales are of another size than those of their siblings."""
    siblings: dict[str, list[QuantisedLayer]] = defaultdict(list)
    for layer in layers:
        if layer.scale and not layer.flaws:
            siblings[_NUMBER.sub(".N.", layer.name)].append(layer)
    found = []
    for several in siblings.values():
        usual = median(layer.scale or 0.0 for layer in several)
        found += [
            Flaw(
                kind="scale",
                what="mean of the scales",
                tensor=layer.name,
                found=f"{layer.scale:.3g}",
                expected=f"about {usual:.3g}, as in the other layers",
            )
            for layer in several
            if len(several) >= SIBLINGS
            and not usual / TIMES <= (layer.scale or 0.0) <= usual * TIMES
        ]
    return found


def _layer_of(flaw: Flaw, layers: Iterable[QuantisedLayer]) -> str:
    """Return the layer that a flaw belongs to."""
    for layer in layers:
        if flaw.tensor == layer.name or flaw in layer.flaws:
            return layer.name
    return flaw.tensor
