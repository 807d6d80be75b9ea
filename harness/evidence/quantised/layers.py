"""Evidence about layers in few bits: which there are, and what their format does not allow.

Formats: GPTQ (both versions), AWQ, bitsandbytes in 4 and 8 bits, levels with a `weight_scale`
(compressed-tensors, fp8, our int8), MXFP4, and our own in 4 bits. Scales and zeros are read whole,
of the levels a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.evidence.quantised.blocks import (
    examine_bnb,
    examine_bnb8,
    examine_int4,
    examine_mxfp4,
    examine_scaled,
)
from harness.evidence.quantised.names import Parts, find_declaration, group_parts
from harness.evidence.quantised.own import examine_own, lost_layers
from harness.evidence.quantised.own_names import METHOD
from harness.evidence.quantised.scales import mean_scale
from harness.evidence.quantised.words import examine_awq, examine_gptq
from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.evidence.values.decodable import is_float
from harness.facts.checkpoint import Weights
from harness.facts.quantised import Quantised, QuantisedLayer
from harness.registry import NotApplicable

SCALES = ("scales", "weight.absmax", "SCB", "weight_scale", "weight_scale_inv")
"""Parts that are multiplied with the levels."""


@provides("quantised", Depth.WEIGHTS)
def examine_quantised(evidence: CheckpointEvidence) -> Quantised:
    """Return every quantised layer of the model.

    Raises:
        NotApplicable: none is quantised.
        Missing: the weights cannot be read.
    """
    weights: Weights = evidence.get("weights")
    groups = group_parts(weights.tensors)
    if not groups:
        raise NotApplicable("no layer is stored in few bits, in a form that is known here")
    declared, source = find_declaration(evidence)
    layers = []
    for name in sorted(groups):
        made = _examine(evidence, name, groups[name], declared)
        if made is not None:
            layers.append(replace(made, scale=_scale(evidence, groups[name])))
    layers += lost_layers(declared, groups)
    if not layers:
        raise NotApplicable("no layer is stored in few bits, in a form that is known here")
    return Quantised(layers=tuple(layers), declared=declared, source=source)


@provides("judged_scales", Depth.WEIGHTS)
def name_scales(evidence: CheckpointEvidence) -> frozenset[str]:
    """Return the names of scales that are judged with their layer; one finding is enough."""
    found: Quantised | None = evidence.find("quantised")
    parts = [] if found is None else [part for layer in found.layers for part in layer.parts]
    return frozenset(part for part in parts if not part.endswith(".weight"))


def _scale(evidence: CheckpointEvidence, parts: Parts) -> float | None:
    """Return the mean scale of a layer."""
    tensor = next((parts[part] for part in SCALES if part in parts), None)
    if tensor is None or not is_float(tensor):
        return None
    return mean_scale(evidence.folder, tensor)


def _examine(
    evidence: CheckpointEvidence, name: str, parts: Parts, declared: Mapping[str, Any]
) -> QuantisedLayer | None:
    """Examine a layer by the form that its parts show."""
    folder = evidence.folder
    if "qweight" in parts and parts["qweight"].dtype in ("I32", "U32"):
        is_awq = str(declared.get("quant_method", "")).lower() == "awq"
        version = str(declared.get("version") or "gemm").lower()
        if is_awq and version != "gemm":
            return None  # other packings of AWQ are not known here
        examine = examine_awq if is_awq else examine_gptq
        return examine(folder, name, parts, declared)
    if declared.get("quant_method") == METHOD and ("qweight" in parts or "scales" in parts):
        return examine_own(folder, name, parts, declared)
    if "qweight" in parts and parts["qweight"].dtype == "U8":
        return examine_int4(folder, name, parts)
    if any(part.startswith("weight.") for part in parts):
        return examine_bnb(folder, name, parts, declared)
    if "SCB" in parts or "weight_format" in parts:
        return examine_bnb8(folder, name, parts)
    if "blocks" in parts:
        return examine_mxfp4(folder, name, parts)
    if "weight_scale" in parts or "weight_scale_inv" in parts:
        return examine_scaled(folder, name, parts, declared)
    return None
