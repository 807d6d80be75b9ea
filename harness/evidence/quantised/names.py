"""Evidence about quantised layers by the names and types of their tensors; no value is read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from harness.evidence.files.inventory import read_settings
from harness.evidence.files.model import text_settings
from harness.evidence.quantised.own_names import KIND, METHOD, is_listed
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.checkpoint import Tensor, Weights
from harness.facts.quantised import Quantisation
from harness.registry import Missing, NotApplicable

DECLARATIONS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Files that declared a quantisation before config.json did."""
OWN_PARTS = frozenset(
    (
        *("qweight", "qzeros", "scales", "g_idx", "SCB", "weight_format", "weight_scale"),
        *("weight_scale_inv", "weight_packed", "weight_shape", "weight_zero_point"),
        "weight_g_idx",
    )
)
"""Last words of the names of which a quantised layer consists, beside `weight`."""
PARTS_OF_WEIGHT = frozenset(
    (
        *("absmax", "quant_map", "nested_absmax", "nested_quant_map"),
        *("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4"),
    )
)
"""What stands behind `weight.` in the names that bitsandbytes gives."""
EXPERT_PARTS = ("blocks", "scales")
"""How packed experts end behind a `_`: `gate_up_proj_blocks`."""
LEVEL_TYPES = ("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4")
"""Types that levels are stored in."""
PLAIN_TYPES = ("F64", "F32", "F16", "BF16")
SKIPS = ("llm_int8_skip_modules", "modules_to_not_convert", "ignore", "ignored_layers")
"""Settings that name modules which stay plain."""
CHOICES: tuple[str, ...] = (
    "dynamic",
    "config_groups",
    "modules_in_block_to_quantize",
    "extra_config",
)
CHOICES += ("module_quant_type", "modules_dtype", "layer_quant_config", "inside_layer_modules")
"""Settings that choose modules in ways that are not followed here."""
_NUMBER = re.compile(r"\.\d+\.")
Parts = dict[str, Tensor]
"""The tensors of a layer by what they are."""


@provides("quantised_groups")
def give_groups(evidence: CheckpointEvidence) -> dict[str, Parts]:
    """Return the parts of every quantised layer, by the layer's name."""
    weights: Weights = evidence.get("weights")
    return group_parts(weights.tensors)


@provides("quantised_parts")
def name_parts(evidence: CheckpointEvidence) -> frozenset[str]:
    """Return the names of levels, scales and zeros: values and shapes are not the weight's."""
    weights: Weights | None = evidence.find("weights")
    groups: Mapping[str, Parts] = {} if weights is None else evidence.get("quantised_groups")
    parts = [one for group in groups.values() for part, one in group.items() if part != "bias"]
    return frozenset(one.name for one in parts)


def find_declaration(evidence: CheckpointEvidence) -> tuple[Mapping[str, Any], str]:
    """Return what declares the quantisation, and the file that does."""
    config: Mapping[str, Any] = evidence.find("config") or {}
    for settings in (config, text_settings(config)):
        for key in ("quantization_config", "quantization", "compression_config"):
            declared = settings.get(key)
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
        module, part = split_part(name)
        if part:
            found[module][part] = tensor
    for module, parts in found.items():
        for part in ("weight", "bias"):
            plain = tensors.get(f"{module}.{part}")
            if plain is not None:
                parts[part] = plain
    return {module: parts for module, parts in found.items() if _has_levels(parts)}


def split_part(name: str) -> tuple[str, str]:
    """Return the module in the name of a quantised layer's tensor, and which part of it that is.

    Returns:
        The part is empty where a plain layer may have such a tensor.
    """
    module, _, part = name.rpartition(".")
    if module and part in OWN_PARTS:
        return module, part
    module, _, part = name.rpartition(".weight.")
    if module and part in PARTS_OF_WEIGHT:
        return module, f"weight.{part}"
    module, _, part = name.rpartition("_")
    return (module, part) if module and part in EXPERT_PARTS else (name, "")


def _has_levels(parts: Parts) -> bool:
    """Whether a layer has levels: a name such as `scales` alone may be anything."""
    if any(part.startswith(("weight.", "qweight", "weight_packed", "blocks")) for part in parts):
        return True
    return "SCB" in parts or ("weight" in parts and parts["weight"].dtype in LEVEL_TYPES)


@provides("quantisation")
def compare_declared(evidence: CheckpointEvidence) -> Quantisation:
    """Return what is declared about few bits beside what the names and types show.

    Raises:
        NotApplicable: nothing is declared, and no layer is quantised.
        Missing: the weights cannot be read.
    """
    weights: Weights = evidence.get("weights")
    declared, source = find_declaration(evidence)
    groups: Mapping[str, Parts] = evidence.get("quantised_groups")
    layers = {name: _kind_of(parts, declared) for name, parts in groups.items()}
    if not layers and not declared:
        raise NotApplicable("nothing is quantised, and nothing says so")
    words, patterns = _skipped(declared)
    plain = _plain_beside(weights.tensors, layers)
    if declared.get("quant_method") == METHOD:  # it lists what is packed, not what is plain
        left = [name for name in plain if is_listed(name, declared)]
    else:
        left = [name for name in plain if not _names(words, name)]
    return Quantisation(
        declared=declared,
        source=source,
        layers=layers,
        left_out=tuple(left),
        follows_patterns=patterns,
    )


def _kind_of(parts: Parts, declared: Mapping[str, Any]) -> str:
    """Return the form of a layer by its parts, and by what is declared where they do not tell."""
    if "qweight" in parts:
        if parts["qweight"].dtype == "U8" and declared.get("quant_method") == METHOD:
            return KIND
        return "int4" if parts["qweight"].dtype == "U8" else "gptq"
    if any(part.startswith("weight.") for part in parts):
        return "bnb-4bit"
    if "SCB" in parts or "weight_format" in parts:
        return "bnb-8bit"
    return "mxfp4" if "blocks" in parts else "scaled"


def _skipped(declared: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Return the modules that are declared to stay plain, and whether patterns choose any."""
    words: list[str] = []
    for key in SKIPS:
        value = declared.get(key)
        words += [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
    patterns = any(declared.get(key) for key in CHOICES) or any(w.startswith("re:") for w in words)
    return words[:10_000], patterns


def _names(words: list[str], module: str) -> bool:
    return any(word in module for word in words)


def _plain_beside(tensors: Mapping[str, Tensor], layers: Mapping[str, str]) -> list[str]:
    """Return plain matrices whose counterparts in other layers are quantised."""
    kinds = {_NUMBER.sub(".N.", name) for name in layers}
    return [
        module
        for name, tensor in tensors.items()
        if (module := name.removesuffix(".weight")) != name
        and module not in layers
        and len(tensor.shape) == 2
        and tensor.dtype in PLAIN_TYPES
        and _NUMBER.sub(".N.", module) in kinds
    ]
