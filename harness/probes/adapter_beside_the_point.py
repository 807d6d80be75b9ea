"""An adapter on parts of the model that hardly touch what it says.

What it does: sorts the adapted modules into body, experts, shared experts, router, vision,
prediction of further tokens, embedding and head, and looks whether the body or its experts are
among them.

Why it is bad: an adapter on the router alone, on layers that only guess further tokens, or on the
vision tower of a model that was to learn a text trains without an error, and the answers stay as
they were (FM50). PEFT stops only when nothing at all matches.

Example: `target_modules: [q_proj, v_proj]` on a model whose text layers have a fused `qkv_proj`:
only the vision tower is adapted.

What to do: list the names with `model.named_modules()` and set `target_modules` to those of the
text layers; for experts that are one parameter, `target_parameters`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from harness.facts.adapters import part_of
from harness.facts.checkpoint import Adapter, Base
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

USELESS = {
    "router": "the router, which only chooses experts",
    "mtp": "layers that only predict further tokens",
    "vision": "the parts that see or hear",
    "shared experts": "shared experts, while the routed ones stay as they are",
}
"""Parts that are beside the point when nothing else is adapted."""


@probe("MPD209", modes=["FM50"], severity=Severity.HIGH)
def check(adapter: Adapter, any_base: Base | None) -> Finding | str:
    """Look for an adapter whose modules all lie beside the text layers."""
    modules = [pair.module for pair in adapter.pairs]
    if not modules or not adapter.is_lora:
        raise NotApplicable("the adapter holds no LoRA factors")
    layers = _layers(any_base.config) if any_base else None
    parts = Counter(part_of(module, layers) for module in modules)
    shown = ", ".join(f"{number} in {part}" for part, number in parts.most_common())
    beside = [part for part in parts if part in USELESS]
    if len(beside) < len(parts) or adapter.replaced:
        return f"{len(modules)} adapted modules: {shown}"
    if "vision" in beside and (any_base is None or not _has_text(any_base)):
        return f"{len(modules)} adapted modules: {shown}; whether the base has others is not known"
    if "vision" in beside and _names_vision(adapter.settings):
        return f"the parts that see are adapted on purpose: target_modules names them ({shown})"
    return Finding(
        message=f"all {len(modules)} adapted modules belong to {' and '.join(map(_say, beside))}",
        evidence=tuple(
            Evidence(what="adapted", tensor=module, found=part_of(module, layers))
            for module in modules
        ),
        cause="target_modules matches names that the text layers do not have",
        remedy="set target_modules to the names of the text layers (model.named_modules() lists "
        "them), target_parameters for fused experts, and train again",
        severity=Severity.MEDIUM if beside == ["vision"] else None,
    )


def _has_text(base: Base) -> bool:
    """Whether a model has layers besides those that see or hear."""
    return any(
        ".layers." in name and part_of(name.rpartition(".")[0]) == "body" for name in base.tensors
    )


def _say(part: str) -> str:
    return USELESS[part]


def _layers(config: Mapping[str, Any]) -> int | None:
    nested = config.get("text_config")
    settings = nested if isinstance(nested, dict) else config
    count = settings.get("num_hidden_layers")
    return count if type(count) is int and count > 0 else None


def _names_vision(settings: Mapping[str, Any]) -> bool:
    """Whether the targets are spelt so that only what sees can be meant."""
    targets = settings.get("target_modules")
    words = targets[:100] if isinstance(targets, list) else [targets]
    return all(
        isinstance(word, str) and (part_of(word.replace("\\", "")) == "vision" or _seen(word))
        for word in words
    )


def _seen(word: str) -> bool:
    return any(part in word for part in ("vis", "image", "audio", "projector", "merger"))
