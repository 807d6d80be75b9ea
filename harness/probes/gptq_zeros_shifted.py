"""The zero points of a GPTQ model are those of another version of the format.

What it does: `checkpoint_format: gptq` stores each zero less one, `gptq_v2` stores it as it is. The
stored zeros of every layer are read as the declared version says, and held against what symmetric
quantisation needs (the middle level) and against the levels, which must lie around their zero.

Why it is bad: with the other version's zeros every weight is off by one level, a sixteenth of its
group's range at 4 bits. The model answers `!!!!` or noise, and no reader complains (FM47).

Example: `qzeros` of 0x88888888 under `checkpoint_format: gptq`: readers add 1 and take 9 for 8.

What to do: declare the version that was written (`checkpoint_format` in `quantization_config` of
config.json and in quantize_config.json), or save again with the program that made it.
"""

from __future__ import annotations

from harness.facts.quantised import Quantised, QuantisedLayer
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import Missing, NotApplicable, probe

NEAR = (0.6, 1.5)
"""Levels by which the mean of a layer lies beside its zero, if that is read off by one. Weights lie
around 0 within a few hundredths of a level."""
SURE = 0.4
"""A layer whose levels lie nearer to its zero than this is read right, whatever the zero is."""
MAJORITY = 0.6
"""Share of the layers that must be off when no zero is the same throughout a layer."""
COARSE = 4
"""Most bits at which one level is large beside the mean of real weights."""


@probe("MPD320", modes=["FM47"], severity=Severity.CRITICAL)
def check(quantised: Quantised) -> Finding | str:
    """Look for zeros that are off by one, or not symmetric where symmetry is declared."""
    layers = [one for one in quantised.layers if one.kind == "gptq"]
    if not layers:
        raise NotApplicable("no layer is in GPTQ's format")
    read = [one for one in layers if one.bias is not None]
    if not read:
        raise Missing("the zeros of the GPTQ layers could not be read")
    version = str(quantised.declared.get("checkpoint_format") or "gptq")
    offset = 0 if version == "gptq_v2" else 1
    sym = quantised.declared.get("sym") is True
    off = [one for one in read if _is_off(one, offset)]
    loose = [one for one in read if one.zero is None and _is_beside(one, offset)]
    if len(loose) >= MAJORITY * len(read):
        off += loose
    if off:
        return _off(off, len(read), version, offset)
    varied = [one for one in read if sym and one.zero is None]
    if varied:
        return _varied(varied, len(read))
    worst = max(abs(one.bias or 0.0) for one in read)
    return (
        f"the zeros of {len(read)} layers fit {version}: on average their levels lie within "
        f"{worst:.2f} levels of them"
    )


def _is_off(one: QuantisedLayer, offset: int) -> bool:
    """Whether one zero throughout the layer is not the middle, and the levels say so too."""
    if one.zero is None or one.zero + offset == 1 << (one.bits - 1):
        return False
    if one.bits > COARSE:
        return abs(one.zero + offset - (1 << (one.bits - 1))) == 1
    return abs(one.bias or 0.0) > SURE


def _is_beside(one: QuantisedLayer, offset: int) -> bool:
    """Whether the levels lie about one below (version 1) or above (version 2) their zero."""
    bias = one.bias or 0.0
    return one.bits <= COARSE and NEAR[0] <= (-bias if offset else bias) <= NEAR[1]


def _off(off: list[QuantisedLayer], count: int, version: str, offset: int) -> Finding:
    first = off[0]
    middle = 1 << (first.bits - 1)
    other = "gptq_v2" if offset else "gptq"
    stored = "" if first.zero is None else f"{first.zero} is stored, read as {first.zero + offset}"
    return Finding(
        message=f"the zero points of {len(off)} of {count} layers are not those of {version}: "
        + (stored or f"levels lie {first.bias:+.2f} beside them in {first.name}")
        + (f", and the middle is {middle}" if stored else ""),
        evidence=tuple(
            Evidence(
                what="stored zero, and mean distance of the levels from it as it is read",
                tensor=f"{one.name}.qzeros",
                found=[one.zero, round(one.bias or 0.0, 2)],
                expected=[middle - offset, 0.0] if one.zero is not None else [None, 0.0],
            )
            for one in off
        ),
        cause=f"the zeros were written as {other}, and {version} is declared",
        remedy=f'set "checkpoint_format": "{other}" in config.json and quantize_config.json, or '
        "save it again with the program that made it",
    )


def _varied(varied: list[QuantisedLayer], count: int) -> Finding:
    layers = agree(len(varied), "layer has", "layers have")
    return Finding(
        message=f"config.json declares sym: true, and {layers} zero points that differ, of "
        f"{count}: readers that trust sym ignore them",
        evidence=tuple(
            Evidence(what="zeros that differ", tensor=f"{one.name}.qzeros") for one in varied
        ),
        cause="the settings are another model's, or the zeros were damaged",
        remedy='set "sym": false if it was quantised so, or fetch the file again',
    )
