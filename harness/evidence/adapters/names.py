"""Evidence about the base that an adapter names, and the names of its modules in memory."""

from __future__ import annotations

from pathlib import Path

from harness.evidence.files.inventory import list_files, read_index
from harness.evidence.files.jsonfile import UnreadableJson, read_object
from harness.evidence.files.places import list_places
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.adapters import LiveNames, NamedBase
from harness.facts.checkpoint import Adapter, Base
from harness.registry import Missing
from mudpuppy.adapters.tensor_names import RENAMES


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


_FAMILIES = (
    "llama mistral mixtral qwen2 qwen3 qwen2_moe qwen3_moe gemma gemma2 gemma3_text phi phi3 gpt2 "
    "gpt_neox gptj gpt_neo falcon opt bloom mpt starcoder2 stablelm olmo olmo2 cohere cohere2 "
    "granite smollm3 mamba glm glm4 deepseek_v3 llava llava_next qwen2_vl qwen2_5_vl"
)
PLAIN = frozenset(_FAMILIES.split())
"""Families whose names in memory are those of their files, or are told below."""


@provides("live_names")
def list_live_names(evidence: CheckpointEvidence) -> LiveNames | None:
    """Return the names of the base's modules as they are in memory; None without a base.

    Files of models that see keep older names, and PEFT follows those in memory alone; only what
    was called `language_model.model` before is renamed in an adapter too (PEFT 0.21, tried).
    """
    base: Base | None = evidence.find("base")
    if base is None:
        return None
    names = _in_memory(frozenset(name.rpartition(".")[0] for name in base.tensors), base)
    return LiveNames(names=names, certain=base.config.get("model_type") in PLAIN)


def _in_memory(names: frozenset[str], base: Base) -> frozenset[str]:
    """Return the names of a file as they are in memory, and those that are renamed to them."""
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
    try:
        return [place for place in list_places(name, folder.absolute()) if place.is_dir()]
    except OSError:
        return []


def find_named_folder(adapter: Adapter) -> Path | None:
    """Return the folder of the model that an adapter names; None when it is not at hand."""
    name = adapter.settings.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        return None
    for place in _places(name, Path(adapter.root)):
        try:
            if _holds_model(place, list_files(place)):
                return place
        except Missing:
            continue
    return None


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
