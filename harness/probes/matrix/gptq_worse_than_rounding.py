"""GPTQ quantised a layer worse than plain rounding does.

What it does: compares, layer by layer, the squared output error of GPTQ with that of
round-to-nearest on the same grid, both measured on the calibration samples. And it packs block
after block anew: the error that the run reports of a layer must be that on the inputs which the
packed blocks before it give to it.

Why it is bad: GPTQ exists to be better than rounding: where it is not, the Hessian, the order of
the columns or the error feedback is wrong (FM48).

Example: the quantisation error is fed back with the wrong sign.

What to do: calibrate on more samples of the kind the model will see, or raise the damping.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe

ALLOWED_RATIO = 1.02
MAX_TOTAL = 0.98
"""Largest share of rounding's error that all layers together may have (measured: see the cells)."""
REPLAY_OFF = {"fp32": 0.01}
ROUNDED_OFF = 0.25
"""Share by which a reported error may differ from the replayed one: 3e-4 is measured in fp32;
where hidden states are rounded to 16 bits (measured: 0.08), they are other ones in fp32."""
NUM_SHOWN = 5


@probe("MPD710", modes=("FM48",), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when a layer's GPTQ error is above its rounding error."""
    layers = [(one.name, one.error, one.rounding_error) for one in observations.packed]
    if not layers:
        raise Missing("nothing was quantised with GPTQ, or its folder was not measured")
    worse = [(name, gptq, rtn) for name, gptq, rtn in layers if gptq > ALLOWED_RATIO * rtn]
    total = sum(g for _, g, _ in layers) / max(sum(r for _, _, r in layers), 1e-30)
    if not worse and total > MAX_TOTAL:
        return Finding(
            message=f"all layers together have {total:.2f} of the error of rounding: nothing is "
            "made good",
            evidence=(Evidence(what="share of the error", found=total, expected=MAX_TOTAL),),
            cause="the columns are rounded to the nearest level, and no error is spread",
            remedy="spread the error of each column over those to come, by the inverse Hessian",
        )
    elsewhere = None if worse else _find_elsewhere(observations)
    if elsewhere is not None:
        return elsewhere
    if not worse:
        return f"{len(layers)} layers, with {total:.2f} of the error that rounding would make"
    return Finding(
        message=f"{len(worse)} of {len(layers)} layers are worse than round-to-nearest",
        evidence=tuple(
            Evidence(
                what="squared output error",
                tensor=name,
                found=gptq,
                expected=f"at most {rtn:.4g} (round-to-nearest)",
            )
            for name, gptq, rtn in worse[:NUM_SHOWN]
        ),
        cause="too few calibration samples, or an error in the update of the columns",
        remedy="raise --calibration-samples, then compare again",
    )


def _find_elsewhere(observations: Observations) -> Finding | None:
    """Return the layers whose reported error is not that on the inputs they really get."""
    reported = {name: gptq for name, gptq, _ in observations.gptq_errors}
    allowed = REPLAY_OFF.get(str((observations.run or {}).get("precision")), ROUNDED_OFF)
    off = [
        (one.name, reported[one.name] / 2, one.replayed_error)
        for one in observations.packed
        if one.replayed_error is not None
        and one.name in reported
        and not abs(reported[one.name] / 2 - one.replayed_error) <= allowed * one.replayed_error
    ]
    if not off:
        return None
    return Finding(
        message=f"{len(off)} of {len(observations.packed)} layers were calibrated on other inputs "
        "than the quantised model gives to them",
        evidence=tuple(
            Evidence(
                what="squared output error",
                tensor=name,
                found=found,
                expected=f"{replayed:.4g} on the inputs that it gets behind the packed blocks",
            )
            for name, found, replayed in off[:NUM_SHOWN]
        ),
        cause="a block was calibrated on what the full model puts out, so that the errors of the "
        "blocks before it add up",
        remedy="run the samples through every block again after it is quantised",
    )
