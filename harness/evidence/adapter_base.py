"""Evidence about the base that an adapter names, and about base weights inside the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.evidence.files import list_files, read_index
from harness.evidence.jsonfile import UnreadableJson, is_path, read_object
from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.facts.adapters import EMBEDDINGS, HEADS, HeldBase, NamedBase
from harness.facts.checkpoint import Adapter, Base, Tensor
from harness.registry import Missing, NotApplicable
from mudpuppy.adapters.tensor_names import RENAMES

COMPARED_BYTES = 1 << 24
"""Bytes of a held tensor that are compared with the base."""


@provides("named_base")
def look_at_named_base(evidence: CheckpointEvidence) -> NamedBase:
    """Return what lies in the folder that an adapter names as its base."""
    adapter: Adapter = evidence.get("adapter")
    name = adapter.settings.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        return NamedBase(name="", kind="")
    for place in _places(name, evidence.folder):
        if place.resolve() == evidence.folder.resolve():
            return NamedBase(name=name, kind="itself")
        try:
            names = list_files(place)
        except Missing:
            continue
        if "adapter_config.json" in names and not _holds_model(place, names):
            return NamedBase(name=name, kind="adapter", adapter_base=_base_of(place))
        return NamedBase(name=name, kind="model")
    return NamedBase(name=name, kind="")


@provides("live_names")
def list_live_names(evidence: CheckpointEvidence) -> frozenset[str] | None:
    """Return the names of the base's modules as they are in memory; None without a base.

    Files of models that see keep older names, and PEFT follows those in memory alone; only what
    was called `language_model.model` before is renamed in an adapter too (PEFT 0.21, tried).
    """
    base: Base | None = evidence.find("base")
    if base is None:
        return None
    names = frozenset(name.rpartition(".")[0] for name in base.tensors)
    if any(name.startswith("language_model.model.") for name in names):
        older = [(live, filed) for live, filed in RENAMES[1] if live != filed]
        return names | _renamed(names, older)
    if any(name.startswith("visual.") for name in names):
        plain = [(live, filed) for live, filed in RENAMES[2] if live != filed]
        return _renamed(names, plain)
    if any(name.startswith("model.language_model.") for name in names):
        if "qwen" in str(base.config.get("model_type")):
            return names
        inner = "model.language_model."
        tails = [name.removeprefix(inner) for name in names if name.startswith(inner)]
        return names | {f"language_model.model.{tail}" for tail in tails}
    return names


def _renamed(names: frozenset[str], renames: list[tuple[str, str]]) -> frozenset[str]:
    """Return names of a file as they are in memory."""
    found = set()
    for name in names:
        match = next((pair for pair in renames if name.startswith(pair[1])), None)
        found.add(name if match is None else match[0] + name.removeprefix(match[1]))
    return frozenset(found)


def _places(name: str, folder: Path) -> list[Path]:
    if not is_path(name):
        return []
    found = [Path(name)] if Path(name).is_absolute() else [folder.parent / name, folder / name]
    try:
        return [place for place in found if place.is_dir()]
    except OSError:
        return []


def _holds_model(folder: Path, names: tuple[str, ...]) -> bool:
    if "model.safetensors" in names or "pytorch_model.bin" in names:
        return True
    return "model.safetensors.index.json" in names and not read_index(folder).problem


def _base_of(folder: Path) -> str:
    try:
        name = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
    except UnreadableJson:
        return ""
    return name[:200] if isinstance(name, str) else ""


@provides("held_base", Depth.WEIGHTS)
def find_held_base(evidence: CheckpointEvidence) -> HeldBase:
    """Sort the whole tensors of an adapter's file into those asked for and the others."""
    adapter: Adapter = evidence.get("adapter")
    if not adapter.is_lora:
        raise NotApplicable(f"the adapter is of type {adapter.kind[:40]}, not LORA")
    base: Base | None = evidence.find("base")
    asked: dict[str, bool | None] = {}
    unasked: dict[str, bool | None] = {}
    numbers = 0
    for name, key in adapter.replaced.items():
        if "token_adapter" in key:
            continue
        tensor = adapter.tensors[key]
        differs = _differs(Path(adapter.root), tensor, base, name)
        if _is_asked(name, key, adapter.settings):
            asked[name] = differs
        else:
            unasked[name] = differs
            numbers += tensor.elements
    total = sum(tensor.elements for tensor in adapter.tensors.values())
    return HeldBase(asked=asked, unasked=unasked, share=numbers / total if total else 0.0)


def _is_asked(name: str, key: str, settings: Mapping[str, Any]) -> bool:
    """Whether a setting, or PEFT's habit of saving resized embeddings, explains a whole tensor."""
    if name.endswith(".bias") and settings.get("bias") not in (None, "none"):
        return True
    module = name.rpartition(".")[0]
    if module.rpartition(".")[2] in (*EMBEDDINGS, *HEADS):
        return True
    saved = settings.get("modules_to_save")
    words = [word for word in saved if isinstance(word, str)] if isinstance(saved, list) else []
    parts = module.split(".")
    return any(word in parts or f".{module}.".find(f".{word}.") >= 0 for word in words)


def _differs(root: Path, tensor: Tensor, base: Base | None, name: str) -> bool | None:
    """Whether a held tensor differs from the base's; None when that cannot be said."""
    old = None if base is None else base.tensors.get(name)
    if base is None or old is None or (old.shape, old.dtype) != (tensor.shape, tensor.dtype):
        return None
    from harness.evidence.arrays import read_bytes  # it imports numpy

    size = min(COMPARED_BYTES, tensor.end - tensor.start)
    try:
        mine = read_bytes(root, tensor, 0, size)
        theirs = read_bytes(Path(base.root), old, 0, size)
    except Missing:
        return None
    if (mine != theirs).any():
        return True
    return False if size == tensor.end - tensor.start else None
