"""Evidence about the state of a model object in memory, by its attributes alone; no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from harness.evidence.live.live import attributes_of, child_of
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.adapters import is_factor
from harness.facts.live import Hook, LiveLayer, LiveState
from harness.registry import NotApplicable

HOOKS = {
    "_forward_hooks": "forward",
    "_forward_pre_hooks": "forward pre",
    "_backward_hooks": "backward",
    "_backward_pre_hooks": "backward pre",
}
"""Where torch keeps the hooks of a module."""
LIBRARIES = (
    *("torch.", "accelerate.", "deepspeed.", "transformers.", "peft.", "bitsandbytes.", "trl."),
    *("mudpuppy.", "unsloth", "liger_kernel.", "lightning.", "pytorch_lightning.", "torchao."),
    *("fairscale.", "megatron.", "nemo.", "vllm.", "axolotl.", "llamafactory.", "swift."),
)
"""Libraries whose hooks belong to how a model is run."""
_FLOATS = ("torch.float32", "torch.float16", "torch.bfloat16", "torch.float64")


@provides("live_state")
def no_live_state(evidence: CheckpointEvidence) -> LiveState:
    """Refuse: a folder is not a live model."""
    del evidence
    raise NotApplicable("only a model in memory shows this: harness.doctor.diagnose_model(model)")


def describe_state(model: Any) -> LiveState:
    """Return the state of a model that the live probes judge; the model is not changed."""
    modules = _named(model, "named_modules")
    parameters = _named(model, "named_parameters")
    layers = tuple(_layer(name, module) for name, module in modules if _carries(module))
    moved = _is_moved(model, modules)
    return LiveState(
        layers=layers,
        strided={name: str(p.device) for name, p in parameters if _is_strided(p)},
        hooks=tuple(_hooks(modules)),
        trainable_base=tuple(
            name
            for name, parameter in parameters
            if parameter.requires_grad and name.endswith(".base_layer.weight")
        ),
        parameters=len(parameters),
        on_meta=() if moved else tuple(n for n, p in parameters if p.device.type == "meta"),
        devices={} if moved else Counter(str(p.device) for _, p in parameters),
        mixed_types=_mixed_types(parameters),
        untied=_untied(model),
        dropouts=tuple(name for name, module in modules if _drops(name, module)),
        is_training=bool(getattr(model, "training", False)),
    )


def _named(model: Any, method: str) -> list[tuple[str, Any]]:
    """Return what a method of torch's modules lists; nothing for other objects."""
    listed = getattr(model, method, None)
    return [(str(name), item) for name, item in listed()] if callable(listed) else []


def _carries(module: Any) -> bool:
    """Whether a module is one of PEFT's layers around a layer of the base."""
    return "merged_adapters" in attributes_of(module) and child_of(module, "base_layer") is not None


def _layer(name: str, module: Any) -> LiveLayer:
    held = set()
    for words in getattr(module, "adapter_layer_names", ()):
        inner = getattr(module, words, None)
        keys = getattr(inner, "keys", None)
        held |= {str(key) for key in keys()} if callable(keys) else set()
    active = getattr(module, "active_adapters", ())
    return LiveLayer(
        name=name,
        available=tuple(sorted(held)),
        active=tuple(sorted(map(str, [active] if isinstance(active, str) else active))),
        merged=tuple(sorted(map(str, module.merged_adapters))),
        enabled=not getattr(module, "disable_adapters", False),
    )


def _is_strided(parameter: Any) -> bool:
    """Whether the values of a matrix do not lie one after the other.

    Images are often laid out by channels, and fused experts by columns, on purpose.
    """
    return parameter.dim() <= 2 and not parameter.is_contiguous()


def _hooks(modules: list[tuple[str, Any]]) -> Iterator[Hook]:
    for name, module in modules:
        for place, kind in HOOKS.items():
            registered = attributes_of(module).get(place)
            for function in registered.values() if isinstance(registered, dict) else ():
                inner = getattr(function, "func", function)
                inner = getattr(inner, "__func__", inner)
                kind_of = type(inner)
                home = str(getattr(inner, "__module__", None) or kind_of.__module__)
                if not f"{home}.".startswith(LIBRARIES):
                    called = str(getattr(inner, "__qualname__", kind_of.__qualname__))
                    yield Hook(module=name, kind=kind, function=f"{home}.{called}")


def _is_moved(model: Any, modules: list[tuple[str, Any]]) -> bool:
    """Whether accelerate moves parameters between devices while the model works."""
    if getattr(model, "hf_device_map", None):
        return True
    return any("_hf_hook" in attributes_of(module) for _, module in modules)


def _mixed_types(parameters: list[tuple[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Return kinds of base weights whose layers differ in type."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for name, parameter in parameters:
        if str(parameter.dtype) in _FLOATS and not is_factor(f"{name}."):
            words = [word for word in name.split(".") if not word.isdigit()]
            kinds[".".join(words)][str(parameter.dtype).removeprefix("torch.")] += 1
    return {
        kind: tuple(f"{count} x {dtype}" for dtype, count in found.most_common())
        for kind, found in kinds.items()
        if len(found) > 1
    }


def _untied(model: Any) -> tuple[str, str] | None:
    """Return embedding and head if the configuration ties them and they are two tensors."""
    config = getattr(model, "config", None)
    if getattr(config, "tie_word_embeddings", None) is not True:
        return None
    pair = []
    for method in ("get_input_embeddings", "get_output_embeddings"):
        found = getattr(model, method, None)
        module = found() if callable(found) else None
        weight = attributes_of(module).get("_parameters", {}).get("weight") if module else None
        if weight is None or weight.device.type == "meta":
            return None  # absent, or inside an adapter's wrapper
        pair.append(weight)
    if pair[0] is pair[1] or pair[0].data_ptr() == pair[1].data_ptr():
        return None
    if tuple(pair[0].shape) != tuple(pair[1].shape):
        return None
    return "the input embedding", "the output head"


def _drops(name: str, module: Any) -> bool:
    """Whether a module is a dropout of the base that is switched on."""
    is_dropout = any(kind.__name__ == "_DropoutNd" for kind in type(module).__mro__)
    own = is_factor(f"{name}.")
    return is_dropout and not own and module.training and getattr(module, "p", 0) > 0
