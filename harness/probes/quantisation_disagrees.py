"""What is declared about few bits is not what the layers are stored in.

What it does: compares `quantization_config` with the form of the layers: another method's tensors
under it (GPTQ words under bitsandbytes), 4 bits under `load_in_8bit`, or a layer that was left in
16 bits while its counterparts in the rest of the model are packed and nothing takes it out.

Why it is bad: loaders build the layers that the configuration describes, look for their tensors,
find none, and fill them with random values after a warning (FM33); or they quantise again (FM32).

Example: `model.layers.7.mlp.down_proj.weight` is BF16, 31 others are packed, and
`llm_int8_skip_modules` does not name it: a merge into one layer, saved back into the 4-bit model.

What to do: save the model again from one source, all of it packed or all of it plain; or name the
layers that are meant to stay plain in `llm_int8_skip_modules` (`modules_to_not_convert`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.facts.quantised import Quantisation
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import Missing, NotApplicable, probe

METHODS = {
    "gptq": ("gptq",),
    "awq": ("gptq",),
    "bitsandbytes": ("bnb-4bit", "bnb-8bit"),
    "mxfp4": ("mxfp4",),
    "mudpuppy": ("mudpuppy-blocks",),
    "fp8": ("scaled",),
    "fbgemm_fp8": ("scaled",),
}
"""Forms of layers that a method writes; other methods are not judged."""


@probe("MPD324", modes=["FM32", "FM33"], severity=Severity.CRITICAL)
def check(quantisation: Quantisation) -> Finding | str:
    """Compare method and layers, and look for plain layers among packed ones."""
    layers, declared = quantisation.layers, quantisation.declared
    if not layers or not declared:
        raise NotApplicable("there are not both quantised layers and what declares them")
    method = str(declared.get("quant_method") or "").lower()
    wrong = _other_form(layers, declared, method)
    if wrong:
        return _disagree(wrong, quantisation, method)
    left = quantisation.left_out
    if left and quantisation.follows_patterns:
        raise Missing("which layers stay plain is chosen by patterns, which are not followed here")
    if not left:
        return f"{len(layers)} quantised layers are as {quantisation.source} declares"
    return Finding(
        message=f"{agree(len(left), 'layer is', 'layers are')} plain, such as {left[0]}, while "
        f"{len(layers)} others are packed, and {quantisation.source} takes none of them out",
        evidence=tuple(
            Evidence(what="plain among packed layers", tensor=name, expected="packed, or declared")
            for name in left
        ),
        cause="one layer was merged or replaced and saved back among the packed ones",
        remedy="save the model again from one source; or name the layers in llm_int8_skip_modules "
        "(modules_to_not_convert) if they are meant to stay plain",
        severity=Severity.HIGH,
    )


def _other_form(
    layers: Mapping[str, str], declared: Mapping[str, Any], method: str
) -> dict[str, str]:
    """Return the layers whose form the declared method does not write."""
    allowed = METHODS.get(method)
    if allowed is None:
        return {}
    if method == "bitsandbytes":
        four, eight = declared.get("load_in_4bit"), declared.get("load_in_8bit")
        if bool(four) != bool(eight):
            allowed = ("bnb-4bit",) if four else ("bnb-8bit",)
    return {name: kind for name, kind in layers.items() if kind not in allowed}


def _disagree(wrong: Mapping[str, str], quantisation: Quantisation, method: str) -> Finding:
    name, kind = next(iter(wrong.items()))
    bits = "in 8 bits" if quantisation.declared.get("load_in_8bit") else ""
    return Finding(
        message=f"{quantisation.source} declares {method}{' ' + bits if bits else ''}, and "
        f"{agree(len(wrong), 'layer is', 'layers are')} stored as {kind}, such as {name}",
        evidence=tuple(
            Evidence(what="form of a layer", tensor=name, found=kind, expected=method)
            for name, kind in wrong.items()
        ),
        cause="the configuration was copied from another quantisation of the same model",
        remedy="put back the quantization_config that was saved with these weights",
    )
