"""Evidence about quantised layers by the names and types of their tensors; no value is read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from harness.evidence.files import read_settings
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.checkpoint import Tensor, Weights
from harness.registry import Missing

DECLARATIONS = ("quantize_config.json", "quant_config.json")
"""Files that declared a quantisation before config.json did."""
PART = re.compile(
    r"^(?P<module>.+?)\.(?P<part>qweight|qzeros|scales|g_idx|SCB|weight_format|weight_scale"
    r"|weight_scale_inv|weight_packed|weight_shape|weight_zero_point|weight_g_idx"
    r"|weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map"
    r"|quant_state\.bitsandbytes__(?:nf4|fp4)))$"
)
"""Names of the tensors of which a quantised layer consists, beside `weight`."""
MXFP4 = re.compile(r"^(?P<module>.+)_(?P<part>blocks|scales)$")
"""How packed experts are named: `gate_up_proj_blocks`."""
LEVEL_TYPES = ("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4")
"""Types that levels are stored in."""
Parts = dict[str, Tensor]
"""The tensors of a layer by what they are."""


@provides("quantised_parts")
def name_parts(evidence: CheckpointEvidence) -> frozenset[str]:
    """Return the names of levels, scales and zeros: values and shapes are not the weight's."""
    weights: Weights | None = evidence.find("weights")
    groups = {} if weights is None else group_parts(weights.tensors)
    parts = [one for group in groups.values() for part, one in group.items() if part != "bias"]
    return frozenset(one.name for one in parts)


def find_declaration(evidence: CheckpointEvidence) -> tuple[Mapping[str, Any], str]:
    """Return what declares the quantisation, and the file that does."""
    config: Mapping[str, Any] = evidence.find("config") or {}
    for key in ("quantization_config", "quantization"):
        declared = config.get(key)
        if isinstance(declared, dict) and declared:
            return declared, "config.json"
    for name in DECLARATIONS:
        try:
            return read_settings(evidence, name), name
        except Missing:
            continue
    return {}, ""


def group_parts(tensors: Mapping[str, Tensor]) -> dict[str, Parts]:
    """Return the parts of every layer that has a part only quantised layers have."""
    found: dict[str, Parts] = defaultdict(dict)
    for name, tensor in tensors.items():
        if match := PART.match(name) or MXFP4.match(name):
            found[match["module"]][match["part"]] = tensor
    for module, parts in found.items():
        for part in ("weight", "bias"):
            plain = tensors.get(f"{module}.{part}")
            if plain is not None:
                parts[part] = plain
    return {module: parts for module, parts in found.items() if _has_levels(parts)}


def _has_levels(parts: Parts) -> bool:
    """Whether a layer has levels: a name such as `scales` alone may be anything."""
    if any(part.startswith(("weight.", "qweight", "weight_packed", "blocks")) for part in parts):
        return True
    return "SCB" in parts or ("weight" in parts and parts["weight"].dtype in LEVEL_TYPES)
