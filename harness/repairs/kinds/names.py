"""Names of tensors: segments of wrappers, and the forms in which PEFT looks for adapter keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from harness.evidence.files.inventory import INDEX_NAME
from harness.evidence.source import CheckpointEvidence
from harness.facts.checkpoint import Files, find_wrapper, strip_wrappers
from harness.repairs.draft import Draft, NotCertain
from harness.repairs.registry import repair

PEFT_PREFIX = "base_model.model."
"""How PEFT's keys begin, in front of the module's path in the base."""
ADAPTER_PARTS = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|base_layer)\b")
"""Names that say an adapter is in a model's own weights: its values are not merged there."""
NAMED = re.compile(r"^(?P<head>.*\.lora_[AB])\.(?P<name>[A-Za-z_]\w*)\.(?P<tail>weight|bias)$")
"""A key with the adapter's name in it, which PEFT leaves out when it saves."""
TOWERS = ("language_model.", "model.language_model.", "model.", "text_model.")
"""Where image models and others put the language model, by version of the library."""


@repair("wrapper-prefix-left")
def strip_wrapper_names(draft: Draft, evidence: CheckpointEvidence) -> None:
    """Take the segments of compilers and parallel wrappers out of the names."""
    files: Files = evidence.get("files")
    planned: dict[str, Mapping[str, str]] = {}
    for file in (*files.weights, *files.adapter):
        if not file.name.endswith(".safetensors"):
            raise NotCertain(f"{file.name} is no safetensors file")
        old = draft.tensor_names(file.name)
        if any(ADAPTER_PARTS.search(name) for name in old) and file in files.weights:
            raise NotCertain("the names are those of an adapter that was never merged in")
        new = {key: strip_wrappers(name) for key, name in old.items()}
        if new != old:
            planned[file.name] = new
    for name, names in planned.items():
        found = next(filter(None, map(find_wrapper, names)))
        count = sum(key != value for key, value in names.items())
        draft.rename_tensors(name, names, f"'{found}.' taken out of {count} tensor names")
    if INDEX_NAME in draft.names and planned:
        index = draft.read_json(INDEX_NAME)
        mapping = index.get("weight_map")
        if isinstance(mapping, dict):
            index["weight_map"] = {strip_wrappers(key): value for key, value in mapping.items()}
            draft.put_json(INDEX_NAME, index, "the same names")


@repair("adapter-keys-dead")
def name_adapter_keys_as_peft_does(draft: Draft, evidence: CheckpointEvidence) -> None:
    """Give adapter keys the form and the modules under which PEFT looks for them."""
    files: Files = evidence.get("files")
    (file,) = files.adapter or (None,)
    if file is None or not file.name.endswith(".safetensors"):
        raise NotCertain("there is no adapter in safetensors form")
    old = draft.tensor_names(file.name)
    known: frozenset[str] | None = evidence.get("base_names")
    plain = {key: PEFT_PREFIX + _without_form(name) for key, name in old.items()}
    for describe, change in _remaps(known):
        new = {key: change(name) for key, name in plain.items()}
        if new != old and len(set(new.values())) == len(new) and _fits(new, known):
            draft.rename_tensors(file.name, new, f"{len(new)} keys {describe}")
            return
    if known is None:
        raise NotCertain("without the base it is not known which modules are meant; pass --base")
    raise NotCertain("no known way of naming makes every key match a module of the base")


def _without_form(name: str) -> str:
    """Return a key without PEFT's prefixes and without the adapter's name."""
    while name.startswith(PEFT_PREFIX):
        name = name.removeprefix(PEFT_PREFIX)
    named = NAMED.match(name)
    return f"{named['head']}.{named['tail']}" if named else name


def _remaps(known: frozenset[str] | None) -> list[tuple[str, Callable[[str], str]]]:
    """Return ways of naming the modules, the one that changes least first."""
    ways: list[tuple[str, Callable[[str], str]]] = [("in PEFT's form", lambda name: name)]
    if known is None:
        return ways
    for old in ("", *TOWERS):
        for new in ("", *TOWERS):
            if old != new:
                text = f"moved from '{old or '(nothing)'}' to '{new or '(nothing)'}'"
                ways.append((text, _mover(PEFT_PREFIX + old, PEFT_PREFIX + new)))
    return ways


def _mover(old: str, new: str) -> Callable[[str], str]:
    return lambda name: new + name.removeprefix(old) if name.startswith(old) else name


def _fits(names: Mapping[str, str], known: frozenset[str] | None) -> bool:
    """Whether every key names a module: of the base, or without one of the usual form."""
    modules = {_module(name) for name in names.values()}
    if known is not None:
        return modules <= known
    return all(re.match(r"(model|transformer|gpt_neox)\.", module) for module in modules)


def _module(name: str) -> str:
    """Return the module that a key adapts."""
    inside = name.removeprefix(PEFT_PREFIX)
    return re.split(r"\.lora_|\.modules_to_save\.", inside)[0]
