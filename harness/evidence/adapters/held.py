"""Evidence about base weights inside an adapter's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.evidence.values.arrays import read_bytes
from harness.facts.adapters import EMBEDDINGS, HEADS, HeldBase, is_factor
from harness.facts.checkpoint import Adapter, Base, Tensor
from harness.registry import Missing, NotApplicable

MOST_WORDS = 500
"""Entries of modules_to_save that are followed."""
COMPARED_BYTES = 1 << 24
"""Bytes of a held tensor that are compared with the base."""


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
        if "token_adapter" in key or is_factor(key):
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
    if module.rpartition(".")[2] in (*EMBEDDINGS, *HEADS, "decoder"):
        return True
    saved = settings.get("modules_to_save")
    # More words than that are no list of modules, and each is looked for in every tensor.
    listed = saved[:MOST_WORDS] if isinstance(saved, list) else []
    words = [word for word in listed if isinstance(word, str)]
    parts = module.split(".")
    return any(word in parts or f".{module}.".find(f".{word}.") >= 0 for word in words)


def _differs(root: Path, tensor: Tensor, base: Base | None, name: str) -> bool | None:
    """Whether a held tensor differs from the base's; None when that cannot be said."""
    old = None if base is None else base.tensors.get(name)
    if base is None or old is None or (old.shape, old.dtype) != (tensor.shape, tensor.dtype):
        return None

    size = min(COMPARED_BYTES, tensor.end - tensor.start)
    try:
        mine = read_bytes(root, tensor, 0, size)
        theirs = read_bytes(Path(base.root), old, 0, size)
    except Missing:
        return None
    if (mine != theirs).any():
        return True
    return False if size == tensor.end - tensor.start else None
