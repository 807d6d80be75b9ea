"""Evidence about a model object in memory, by its attributes alone; no torch, no PEFT."""

from __future__ import annotations

from typing import Any

from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.behaviour import LiveModel
from harness.registry import NotApplicable

LEFTOVERS = ("peft_config", "_hf_peft_config_loaded")
"""Attributes that PEFT and transformers set on a model with an adapter."""


@provides("live_model")
def no_live_model(evidence: CheckpointEvidence) -> LiveModel:
    """Refuse: a folder is not a live model."""
    del evidence
    raise NotApplicable("only a model in memory shows this: harness.doctor.diagnose_model(model)")


def describe_live(model: Any) -> LiveModel:
    """Return the facts that the live probes judge; the model is not changed."""
    layers = _adapter_layers(model)
    is_peft = _is_peft(model)
    leftovers = () if is_peft or layers else tuple(n for n in LEFTOVERS if _holds(model, n))
    config = attributes_of(model).get("peft_config")
    return LiveModel(
        type_name=type(model).__name__,
        is_peft=is_peft,
        leftovers=leftovers,
        nested_wrappers=_count_wrappers(model),
        adapters=tuple(str(name) for name in config) if isinstance(config, dict) else (),
        stacked_modules=tuple(name for name, stacked in layers if stacked),
        adapter_layers=len(layers),
    )


def _holds(model: Any, name: str) -> bool:
    """Whether the object itself carries a truthy attribute; classes define harmless defaults."""
    return bool(attributes_of(model).get(name))


def _is_peft(model: Any) -> bool:
    """Whether the object is PEFT's wrapper, or one of its tuners inside it."""
    return not {"PeftModel", "BaseTuner"}.isdisjoint(kind.__name__ for kind in type(model).__mro__)


def attributes_of(model: Any) -> dict[str, Any]:
    """Return what the object itself carries, without what its class defines."""
    return vars(model) if hasattr(model, "__dict__") else {}


def _count_wrappers(model: Any) -> int:
    """Return how many PEFT wrappers are inside each other, from the outside in."""
    count, current, seen = 0, model, set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        count += any(kind.__name__ == "PeftModel" for kind in type(current).__mro__)
        inner = child_of(current, "base_model")
        current = inner if inner is not None else child_of(current, "model")
    return count


def child_of(module: Any, name: str) -> Any:
    """Return a module inside another, or any attribute of its own; None when there is none."""
    children = attributes_of(module).get("_modules")
    if isinstance(children, dict):
        return children.get(name)
    return attributes_of(module).get(name)


def _adapter_layers(model: Any) -> list[tuple[str, bool]]:
    """Return every module with LoRA factors around a base layer, and whether that has some too."""
    if not callable(getattr(model, "named_modules", None)):
        return []
    found = []
    for name, module in model.named_modules():
        if _is_adapter_layer(module):
            inner = child_of(module, "base_layer")
            # PEFT puts one wrapper around another for each parameter of fused experts.
            fused = type(module).__name__ == type(inner).__name__ == "ParamWrapper"
            found.append((str(name), _is_adapter_layer(inner) and not fused))
    return found


def _is_adapter_layer(module: Any) -> bool:
    if module is None or child_of(module, "base_layer") is None:
        return False
    return (
        child_of(module, "lora_A") is not None or child_of(module, "lora_embedding_A") is not None
    )
