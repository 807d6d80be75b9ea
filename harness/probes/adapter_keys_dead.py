"""Adapter keys that match nothing in the base model.

What it does: PEFT puts the tensors of an adapter onto modules by name. These names lead nowhere.

Why it is bad: loading goes on with "Found missing adapter keys while loading the checkpoint", the
modules keep their fresh, zero factors, and the output is that of the base (FM06, FM07).

Example: `base_model.model.model.layers.0...` for a base whose layers are called
`model.language_model.layers.0...`: trained on the text model, loaded into the vision model.

What to do: load the adapter with the class it was trained with (`AutoModelForCausalLM`), or rename
the keys in a copy. Keys without `base_model.model.` were saved from the wrong object: save again
with `model.save_pretrained(DIR)` of the PEFT model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.facts.checkpoint import Adapter, find_wrapper
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

_NESTED = re.compile(r"^(?:base_model\.model\.){2,}|\.base_layer\.lora_|^base_model\.model\.lora_")
_UNCLEAR = r"experts|\.base_layer|lora_[AB]|router|\.gate$|^base_model\.model\."
_LAYER = re.compile(r"^(.*?(?:layers|h|blocks|block)\.)(\d+)(\..+)$")
_SEEING = re.compile(r"(?:^|\.)(?:language_model|visual|vision_tower|multi_modal_projector)\.")
"""Parts of models that see, whose files keep the names that older classes had."""
_HEADS = ("lm_head", "embed_out", "score", "classifier", "qa_outputs")
"""Heads that a base may lack: tied to its embedding, or made for a task that it was not made
for."""
FILE = "adapter_model.safetensors"


@probe("MPD204", modes=["FM06", "FM07", "FM53"])
def check(adapter: Adapter, base_names: frozenset[str] | None, why_no_base: str) -> Finding | str:
    """Look at the form of every key, then match every adapted module with the base."""
    # Wrappers and stacking have probes of their own, with a better remedy.
    odd = [key for key in adapter.unknown if not find_wrapper(key) and not _NESTED.search(key)]
    if adapter.is_lora and (odd or len(adapter.names) == 1):
        return _malformed(adapter, odd)
    if base_names is None:
        raise Missing(why_no_base)
    modules = _modules(adapter)
    if not modules:
        raise Missing("the adapter holds no module that can be matched by name")
    known = _Names(base_names)
    dead = [name for name in modules if not _is_alive(name, adapter, known)]
    if not dead:
        return f"all {len(modules)} adapted modules exist in the base"
    return _unmatched(dead, len(modules), base_names)


class _Names:
    """The base's module names, in the forms in which they are looked up."""

    def __init__(self, names: frozenset[str]) -> None:
        self.whole = names
        self.without_first = frozenset(one.partition(".")[2] for one in names)
        self.has_head = any(one.rpartition(".")[2] in _HEADS for one in names)
        sees = any(_SEEING.search(one) for one in names)
        self.unnested = frozenset(_without_nesting(one) for one in names) if sees else frozenset()


def _is_alive(module: str, adapter: Adapter, names: _Names) -> bool:
    """Whether loaders find a module in the base, by the names that they try themselves."""
    settings = adapter.settings
    name = _origin_of_layer(module, settings.get("layer_replication"))
    last = name.rpartition(".")[2]
    saved = settings.get("modules_to_save")
    if isinstance(saved, list) and last in saved:
        return True  # stored whole, so it needs nothing of the base
    if last in _HEADS and not names.has_head:
        return True
    parts = name.split(".")
    # Other methods put a word of their own behind the module (`q_proj.oft_R`).
    shortest = len(parts) if adapter.is_lora else 1
    own = [".".join(parts[:length]) for length in range(shortest, len(parts) + 1)]
    # A base without its head is saved without the first word: `layers.0`, not `model.layers.0`.
    own += [one.partition(".")[2] for one in own]
    if any(one in names.whole for one in own if one):
        return True
    if _SEEING.search(name) and names.unnested:
        return _without_nesting(name) in names.unnested
    return _is_bare(settings) and name in names.without_first


def _without_nesting(name: str) -> str:
    return re.sub(r"(?:^|(?<=\.))(?:model|language_model)\.", "", name)


def _is_bare(settings: Mapping[str, Any]) -> bool:
    """Whether an adapter was trained on a model without head, whose names lack the first word."""
    auto = settings.get("auto_mapping")
    trained_on = str(auto.get("base_model_class")) if isinstance(auto, dict) else ""
    return settings.get("task_type") == "FEATURE_EXTRACTION" or trained_on.endswith("Model")


def _origin_of_layer(module: str, replication: Any) -> str:
    """Return the module of the base that PEFT copies when it repeats layers."""
    match = _LAYER.match(module)
    if match is None or not isinstance(replication, list):
        return module
    left = int(match[2]) if len(match[2]) < 9 else 0
    for span in replication:
        if not (isinstance(span, list) and len(span) == 2 and all(type(n) is int for n in span)):
            return module
        if left < span[1] - span[0]:
            return f"{match[1]}{span[0] + left}{match[3]}"
        left -= span[1] - span[0]
    return module


def _malformed(adapter: Adapter, odd: list[str]) -> Finding:
    keys = odd or [key for key in adapter.tensors if f".{adapter.names[0]}." in key]
    return Finding(
        message=f"{len(keys)} of {len(adapter.tensors)} keys are not of the form that PEFT loads, "
        f"such as {keys[0]}",
        evidence=tuple(Evidence(what="key", file=FILE, tensor=key) for key in keys),
        cause="the tensors were saved from the state dict instead of with save_pretrained(), or "
        "their keys were edited",
        remedy="save again with save_pretrained() of the PEFT model; expected keys are "
        "base_model.model.<module>.lora_A.weight",
    )


def _modules(adapter: Adapter) -> list[str]:
    """Return the modules to match; fused experts are renamed by loaders and cannot be."""
    names = [pair.module for pair in adapter.pairs]
    names += [name.rpartition(".")[0] for name in adapter.replaced]
    names = [n for n in names if not re.search(_UNCLEAR, n)]
    return [name for name in dict.fromkeys(names) if not find_wrapper(f"{name}.")]


def _unmatched(dead: list[str], total: int, names: frozenset[str]) -> Finding:
    tail = re.sub(r"^.*?(?=layers\.|h\.\d|blocks\.)", "", dead[0])
    alike = sorted(name for name in names if name.endswith(f".{tail}") or name == tail)
    nested = any("language_model" in name or name.startswith("visual") for name in names)
    return Finding(
        message=f"{len(dead)} of {total} adapted modules are not in the base, such as {dead[0]}"
        ": PEFT says 'Found missing adapter keys while loading the checkpoint' and leaves them out",
        evidence=tuple(
            Evidence(
                what="no such module in the base",
                file=FILE,
                tensor=module,
                expected=alike[0] if alike and module == dead[0] else None,
            )
            for module in dead
        ),
        cause="trained on another class or version of the model, whose modules have other names",
        remedy=f"rename the keys in a copy, '{dead[0]}' to '{alike[0]}'"
        if alike
        else "load it on the model it was trained on, and pass that as --base",
        # Loaders of vision models rename old and new styles into each other.
        severity=Severity.NOTE if alike and nested else Severity.CRITICAL,
    )
