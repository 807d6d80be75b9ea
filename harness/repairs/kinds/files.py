"""Which files there are: stray adapter settings, stale shards, a wrong index, pickled weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from harness.evidence.files.headers import BITS
from harness.evidence.files.inventory import INDEX_NAME, SHARD
from harness.evidence.source import CheckpointEvidence
from harness.facts.checkpoint import Files, Lineage, Pickled
from harness.repairs.draft import Converted, Draft, NotCertain
from harness.repairs.registry import EARLY, LATE, repair
from harness.repairs.torch_archive import TorchArchive

SAFE_NAMES = {"pytorch_model.bin": "model.safetensors"}
SAFE_NAMES["adapter_model.bin"] = "adapter_model.safetensors"
"""What pickled weights are called once they are safe."""
EXTRAS = re.compile(r"(training_args|optimizer|scheduler|rng_state.*|scaler)\.(bin|pt|pth)")
"""Pickles that no loader of a model opens; only going on with the training needs them."""
MOST_GROWTH = 3
"""How much larger the safetensors may be than the archive: tied weights are stored twice."""
MERGED = 0.05
"""How far k may be from 1 for an adapter to count as merged."""


@repair("adapter-beside-merged-weights", turn=EARLY)
def take_out_adapter_settings(draft: Draft, evidence: CheckpointEvidence) -> None:
    """Leave out the adapter that loaders would apply once more."""
    weights = [name for name in draft.names if name.startswith("adapter_model.")]
    if weights:
        beside = replace(evidence.options, adapter=draft.folder)
        lineage: Lineage | None = CheckpointEvidence(draft.folder, beside).find("lineage")
        if lineage is None or not lineage.modules:
            raise NotCertain(
                "whole weights and an adapter lie in one folder, and whether the one holds the "
                "other is not known; pass --base"
            )
        seen = [one for one in lineage.modules if one.resolvable]
        if any(one.has_no_effect for one in lineage.modules):
            raise NotCertain("the adapter beside the whole weights is not merged into them")
        if not seen or not all(abs(one.k - 1) < MERGED for one in seen):
            raise NotCertain("that the adapter is merged into the weights beside it is not certain")
    why = "the weights hold the adapter already" if weights else "its adapter is not here"
    for name in ("adapter_config.json", *weights):
        draft.drop(name, why)


@repair("shards-stale", turn=EARLY)
def take_out_stale_shards(draft: Draft, evidence: CheckpointEvidence) -> None:
    """Leave out the weights that loaders do not open."""
    files: Files = evidence.get("files")
    if not any(name.endswith(".safetensors") for name in files.ignored_weights):
        raise NotCertain("which of the two formats is meant is not certain")
    for name in files.ignored_weights:
        draft.drop(name, "it belongs to another save and is not loaded")


@repair("index-disagrees", turn=LATE)
def rebuild_index(draft: Draft, evidence: CheckpointEvidence) -> None:
    """Write the index that the headers of the shards call for."""
    del evidence
    shards = [name for name in draft.names if SHARD.match(name) and name.endswith(".safetensors")]
    totals = {found["total"] for name in shards if (found := SHARD.match(name))}
    numbers = sorted(int(found["number"]) for name in shards if (found := SHARD.match(name)))
    if len(totals) != 1 or numbers != list(range(1, int(totals.pop()) + 1)):
        raise NotCertain("the shards are not numbered from 1 to their last: one may be missing")
    mapping: dict[str, str] = {}
    total = 0
    for name in shards:
        tensors = draft.read_weights(name).tensors
        for old, new in draft.tensor_names(name).items():
            if new in mapping:
                raise NotCertain(f"{new} is in {mapping[new]} and in {name}")
            mapping[new] = name
            one = next(tensor for tensor in tensors if tensor.name == old)
            total += math.prod(one.shape) * BITS[one.dtype] // 8
    value = {"metadata": {"total_size": total}, "weight_map": dict(sorted(mapping.items()))}
    draft.put_json(INDEX_NAME, value, f"written anew from {len(shards)} shards")


@repair("weights-pickled", turn=EARLY)
def convert_pickles(draft: Draft, evidence: CheckpointEvidence) -> None:
    """Write pickled weights as safetensors, and leave out pickles that would run code."""
    pickles: Mapping[str, Pickled] = evidence.get("pickles")
    planned: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for name in pickles:
        new = _safe_name(name)
        if new is not None and new not in draft.names:
            archive = TorchArchive(draft.folder / name)
            archive.close()
            planned[name] = new
            sizes[name] = sum(tensor.num_bytes for tensor in archive.tensors)
            if sizes[name] > MOST_GROWTH * (draft.folder / name).stat().st_size:
                raise NotCertain(f"the tensors of {name} share storages: it would grow too much")
    unsafe = [name for name, one in pickles.items() if (one.calls or one.problem)]
    stay = [name for name in unsafe if name not in planned and not _is_spare(name, draft)]
    if stay:
        raise NotCertain(f"{stay[0]} cannot be read safely, and a loader may need it")
    for name, new in planned.items():
        draft.contents[new] = Converted(source=name, num_bytes=sizes[name])
        draft.note(new, f"the tensors of {name}, with the same values")
        draft.drop(name, f"{new} holds its tensors")
    for name in unsafe:
        if name not in planned:
            draft.drop(name, "a pickle that may run code, which no loader of the model needs")
    _move_index(draft, planned)


def _safe_name(name: str) -> str | None:
    if name in SAFE_NAMES:
        return SAFE_NAMES[name]
    found = SHARD.match(name)
    if found is None or found["stem"] != "pytorch_model" or not name.endswith(".bin"):
        return None
    return f"model-{found['number']}-of-{found['total']}.safetensors"


def _is_spare(name: str, draft: Draft) -> bool:
    """Whether a model loads without the file: training state, or weights that are there twice."""
    return EXTRAS.fullmatch(name) is not None or _safe_name(name) in draft.names


def _move_index(draft: Draft, planned: Mapping[str, str]) -> None:
    """Point the index of pickled shards at the safe ones."""
    name = "pytorch_model.bin.index.json"
    if name not in draft.names or not planned:
        return
    index = draft.read_json(name)
    mapping = index.get("weight_map")
    if not isinstance(mapping, dict):
        raise NotCertain(f"{name} has no weight_map")
    index["weight_map"] = {key: planned.get(value, value) for key, value in mapping.items()}
    draft.put_json(INDEX_NAME, index, "the same index for the safe shards")
    draft.drop(name, f"{INDEX_NAME} takes its place")
