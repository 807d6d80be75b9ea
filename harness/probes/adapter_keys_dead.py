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

from harness.facts import Adapter, find_wrapper
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

_NESTED = re.compile(r"^(?:base_model\.model\.){2,}|\.base_layer\.lora_|^base_model\.model\.lora_")
_UNCLEAR = r"experts|\.base_layer|lora_[AB]|router|\.gate$|^base_model\.model\."
FILE = "adapter_model.safetensors"


@probe("MPD204", modes=["FM06", "FM07", "FM53"])
def check(adapter: Adapter, base_names: frozenset[str] | None, why_no_base: str) -> Finding | str:
    """Look at the form of every key, then match every adapted module with the base."""
    # Wrappers and stacking have probes of their own, with a better remedy.
    odd = [key for key in adapter.unknown if not find_wrapper(key) and not _NESTED.search(key)]
    if odd or len(adapter.names) == 1:
        return _malformed(adapter, odd)
    if base_names is None:
        raise Missing(why_no_base)
    modules = _modules(adapter)
    if not modules:
        raise Missing("the adapter holds no module that can be matched by name")
    dead = [module for module in modules if module not in base_names]
    if not dead:
        return f"all {len(modules)} adapted modules exist in the base"
    return _unmatched(dead, len(modules), base_names)


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
        severity=Severity.NOTE if alike and nested else Severity.ERROR,
    )
