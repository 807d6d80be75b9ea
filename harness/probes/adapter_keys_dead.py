"""Adapter keys that match nothing in the base model.

What it does: PEFT puts the tensors of an adapter onto modules by name, as the model has them in
memory. The names here lead nowhere, all of them or some. Without a base, names are held against the
forms that language models have.

Why it is bad: loading goes on with "Found missing adapter keys while loading the checkpoint", the
modules keep their fresh, zero factors, and the output is that of the base (FM06, FM07).

Example: `base_model.model.model.layers.0...` for a base whose layers are called
`model.language_model.layers.0...`: trained on the text model, or with an older transformers, and
loaded into the vision model.

What to do: load the adapter with the class it was trained with (`AutoModelForCausalLM`), or rename
the keys in a copy. Keys without `base_model.model.` were saved from the wrong object: save again
with `model.save_pretrained(DIR)` of the PEFT model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.facts.adapters import HEADS, SCORES, LiveNames
from harness.facts.checkpoint import Adapter, find_wrapper
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

_NESTED = re.compile(r"^(?:base_model\.model\.){2,}|\.base_layer\.lora_|^base_model\.model\.lora_")
_UNCLEAR = r"experts|\.base_layer|lora_[AB]|router|\.gate$|^base_model\.model\."
_LAYER = re.compile(r"^(.*?(?:layers|h|blocks|block)\.)(\d+)(\..+)$")
_HEADS = (*HEADS, *SCORES)
"""Heads that a base may lack: tied to its embedding, or made for a task that it was not made
for."""
FILE = "adapter_model.safetensors"
LONGEST = 24
"""Words of a module's name; real ones have about ten."""


_INNER = ("model", "transformer", "language_model", "base_model", "backbone", "gpt_neox")
"""First words of names that a base without head has lost already."""
_BARE = re.compile(r"^(?:layers|h|blocks)\.\d")
_DOUBLED = re.compile(r"^(?:model\.){2,}(?:layers|embed_tokens)\b|^pretrained_model\.")


@probe("MPD204", modes=["FM06", "FM07", "FM23", "FM53"], severity=Severity.CRITICAL)
def check(adapter: Adapter, live_names: LiveNames | None, why_no_base: str) -> Finding | str:
    """Look at the form of every key, then match every adapted module with the base."""
    # Wrappers and stacking have probes of their own, with a better remedy.
    odd = [key for key in adapter.unknown if not _is_wrapped(key) and not _NESTED.search(key)]
    if adapter.is_lora and (odd or len(adapter.names) == 1):
        return _malformed(adapter, odd)
    modules = _modules(adapter)
    if live_names is None:
        return _judge_form(modules, adapter.settings, why_no_base)
    if not modules:
        raise Missing("the adapter holds no module that can be matched by name")
    known = _Names(live_names.names)
    dead = [name for name in modules if not _is_alive(name, adapter, known)]
    if not dead:
        return f"all {len(modules)} adapted modules exist in the base"
    return _unmatched(dead, len(modules), live_names)


def _judge_form(modules: list[str], settings: Mapping[str, Any], why_no_base: str) -> Finding:
    """Report names that no language model has; without a base nothing more can be said.

    Raises:
        Missing: the names have a known form.
    """
    causal = settings.get("task_type") == "CAUSAL_LM"
    odd = [m for m in modules if _DOUBLED.match(m) or (causal and _BARE.match(m))]
    if not odd or not causal:
        raise Missing(why_no_base)
    return Finding(
        message=f"{len(odd)} of {len(modules)} adapted modules have names that no language model "
        f"of transformers has, such as {odd[0]}: PEFT says 'Found missing adapter keys while "
        "loading the checkpoint' and leaves them out",
        evidence=tuple(Evidence(what="name of a module", file=FILE, tensor=name) for name in odd),
        cause="trained on another class than it is loaded with (AutoModel, a wrapper with a value "
        "head)",
        remedy=f"rename the keys in a copy, so that '{odd[0]}' begins as the base's modules do, or "
        "load it with the class it was trained with; pass --base to be told the names",
        severity=Severity.HIGH,
    )


class _Names:
    """The base's module names, in the forms in which they are looked up."""

    def __init__(self, names: frozenset[str]) -> None:
        self.whole = names
        self.without_first = frozenset(one.partition(".")[2] for one in names)
        self.has_head = any(one.rpartition(".")[2] in _HEADS for one in names)


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
    if len(parts) > LONGEST:
        return False
    # Other methods put a word of their own behind the module (`q_proj.oft_R`).
    shortest = len(parts) if adapter.is_lora else 1
    own = [".".join(parts[:length]) for length in range(shortest, len(parts) + 1)]
    # A base without its head is saved without the first word: `layers.0`, not `model.layers.0`.
    shorter = [one.partition(".")[2] for one in own]
    own += [one for one in shorter if one.partition(".")[0] not in _INNER]
    if any(one in names.whole for one in own if one):
        return True
    return _is_bare(settings) and name in names.without_first


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
    keys = odd or [key for key in adapter.tensors if adapter.names[0] in key]
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
    return [name for name in dict.fromkeys(names) if not _is_wrapped(f"{name}.")]


def _is_wrapped(name: str) -> bool:
    """Whether a compiler or a parallel wrapper is in a name; the class of TRL is another class."""
    return find_wrapper(name) not in ("", "pretrained_model")


def _unmatched(dead: list[str], total: int, live: LiveNames) -> Finding:
    """Report the dead names.

    Raises:
        Missing: none of them is known, in a family that may have other names in memory.
    """
    names = live.names
    old, new, fixed = _find_renaming(dead, names)
    if not live.certain and not fixed:
        raise Missing("transformers may call the modules of this family otherwise than its files")
    shown = f"'{old}' to '{new}'" if old and new else f"'{old}' away" if old else f"'{new}' before"
    return Finding(
        message=f"{len(dead)} of {total} adapted modules are not in the base, such as {dead[0]}"
        ": PEFT says 'Found missing adapter keys while loading the checkpoint' and leaves them out",
        evidence=tuple(
            Evidence(
                what="no such module in the base",
                file=FILE,
                tensor=module,
                expected=new + module.removeprefix(old)
                if fixed and new + module.removeprefix(old) in names
                else None,
            )
            for module in dead
        ),
        cause="trained on another class or version of the model, whose modules have other names",
        remedy=f"rename the keys in a copy, {shown} after base_model.model. (that finds {fixed} of "
        f"{len(dead)}), or load the adapter with the class it was trained with"
        if fixed
        else "load it on the model it was trained on, and pass that as --base",
        severity=None if live.certain else Severity.NOTE,
    )


def _find_renaming(dead: list[str], names: frozenset[str]) -> tuple[str, str, int]:
    """Return the beginning of names to exchange, for what, and how many modules that finds."""
    parts = dead[0].split(".")
    best = ("", "", 0)
    for first in range(max(0, len(parts) - LONGEST), len(parts) - 1):
        tail = ".".join(parts[first:])
        old = dead[0][: len(dead[0]) - len(tail)]
        alike = [name for name in names if name == tail or name.endswith(f".{tail}")]
        for name in sorted(alike)[:8]:
            new = name[: len(name) - len(tail)]
            fixed = sum(one.startswith(old) and new + one[len(old) :] in names for one in dead)
            best = max(best, (old, new, fixed), key=lambda found: found[2])
        if best[2]:
            return best
    return best
