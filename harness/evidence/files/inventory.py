"""Evidence from the folder alone: which files there are, and what their headers say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZipFile

from harness.evidence.files.archives import BROKEN_ARCHIVE
from harness.evidence.files.headers import HeaderBudget, read_weight_file
from harness.evidence.files.jsonfile import UnreadableJson, is_path, limit_of, read_object
from harness.evidence.files.kept import read_kept
from harness.evidence.files.kinds import recognise
from harness.evidence.files.links import is_refused, resolve, stays_at_home
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.checkpoint import Files, ShardIndex, WeightFile
from harness.registry import Missing, NotApplicable

INDEX_NAME = "model.safetensors.index.json"
"""The index that transformers follows."""
VARIANT_INDEX = re.compile(r"^model\.safetensors\.index\.[\w-]+\.json$")
"""The index that `save_pretrained(variant=...)` writes; it is followed when asked for by name."""
SHARD = re.compile(r"^(?P<stem>model|pytorch_model)-(?P<number>\d{5})-of-(?P<total>\d{5})\.")
"""How shards of a save are named."""
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "mudpuppy.json",
)
"""Configuration files that must be JSON objects when they are there."""
NOT_MODEL = (
    "adapter_",
    "adapters.",
    "optimizer",
    "scheduler",
    "rng_state",
    "training_args",
    "random_states",
)
"""Beginnings of file names that never hold the model's weights."""
ADAPTER_KEY = re.compile(r"^base_model\.model\.|\.lora_(A|B|embedding_A|embedding_B)(\.|$)")
"""Keys that only adapters have."""
LEAST_PICKLE = 4_096
"""Bytes below which a pickle may well hold no tensor at all: `torch.save({})` leaves 443 to 1,161,
by the version."""
NAME_LIMIT = 200_000
"""Files of one folder that are listed; what lies beyond is counted, and told."""
MATTERS = re.compile(
    r"(?i)\.(safetensors|gguf|bin|pt|pth|pkl|pickle|ckpt|json|jsonl|jinja|model|ya?ml|toml)$"
)
"""Ends of names that are kept first where not all can be: weights, pickles, settings, texts."""
LONGEST_NAME = 255
"""Bytes of a file name that file systems allow."""
FOLDER_LIMIT = 10_000
"""Folders of one folder that are looked into."""


@provides("files")
def take_inventory(evidence: CheckpointEvidence) -> Files:
    """List the folder and read the header of every weight file that loaders would open."""
    root = evidence.folder
    if evidence.file:
        return _describe_alone(evidence)
    names, unlisted = list_most(root)
    index_name = find_index(names)
    index = read_index(root, index_name) if index_name else None
    chosen = choose_weights(names, index)
    standard = [n for n in names if n == "model.safetensors" or _is_shard(n)]
    budget = HeaderBudget()
    return Files(
        root=str(root),
        names=names,
        weights=tuple(_read(root, name, budget) for name in chosen),
        adapter=tuple(_read(root, name, budget) for name in _adapter_files(names)),
        index=index,
        ignored_weights=tuple(name for name in standard if name not in chosen),
        unreadable_json=_unreadable(evidence, names),
        unlisted=unlisted,
    )


def _describe_alone(evidence: CheckpointEvidence) -> Files:
    """Describe one file as if it were all there is; of a split GGUF file, all its parts."""
    root, name = evidence.folder, evidence.file
    if recognise(root / name) == "gguf":
        parts: tuple[WeightFile, ...] = evidence.get("gguf_files")
        names = tuple(part.name for part in parts)
        return Files(root=str(root), names=names, weights=parts, adapter=(), alone=True)
    file = _read(root, name)
    is_adapter = name.startswith("adapter_model.") or any(
        ADAPTER_KEY.search(tensor.name) for tensor in file.tensors
    )
    return Files(
        root=str(root),
        names=(name,),
        weights=() if is_adapter else (file,),
        adapter=(file,) if is_adapter else (),
        alone=True,
    )


def list_files(root: Path) -> tuple[str, ...]:
    """Return the names of the files in a folder that may be read, sorted.

    Links to other files are among them, and links to files of the system are not.

    Raises:
        Missing: the folder cannot be listed.
    """
    return list_most(root)[0]


def list_most(root: Path) -> tuple[tuple[str, ...], int]:
    """Return the names of at most `NAME_LIMIT` plain files, sorted, and how many more there are.

    Raises:
        Missing: the folder cannot be listed.
    """
    try:
        found = [path.name for path in root.iterdir() if path.is_file() and not is_refused(path)]
    except OSError as problem:
        raise Missing(f"the folder cannot be listed: {problem.strerror}") from problem
    if len(found) > NAME_LIMIT:
        found.sort(key=lambda name: (MATTERS.search(name) is None, name))
    return tuple(sorted(found[:NAME_LIMIT])), max(0, len(found) - NAME_LIMIT)


def list_folders(root: Path) -> list[str]:
    """Return the names of the folders in a folder that are not hidden, sorted; none on failure."""
    try:
        found = [path.name for path in root.iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted(name for name in found if not name.startswith("."))[:FOLDER_LIMIT]


def choose_weights(names: tuple[str, ...], index: ShardIndex | None) -> tuple[str, ...]:
    """Return the weight files that transformers would open, by its order of preference."""
    if "model.safetensors" in names:
        return ("model.safetensors",)
    if index is not None and index.weight_map:
        listed = sorted(set(index.weight_map.values()))
        return tuple(name for name in listed if name in names and name not in index.escaping)
    shards = tuple(n for n in names if _is_shard(n) and n.endswith(".safetensors"))
    if shards:
        return shards
    pickled = tuple(n for n in names if n == "pytorch_model.bin" or _is_shard(n))
    if pickled:
        return pickled
    return tuple(n for n in names if n.endswith(".safetensors") and not n.startswith(NOT_MODEL))


def find_index(names: tuple[str, ...]) -> str:
    """Return the name of the shard index: that of a variant where the folder holds nothing else."""
    if INDEX_NAME in names:
        return INDEX_NAME
    variants = [name for name in names if VARIANT_INDEX.match(name)]
    others = any(name == "model.safetensors" or _is_shard(name) for name in names)
    return variants[0] if len(variants) == 1 and not others else ""


def read_index(root: Path, name: str = INDEX_NAME) -> ShardIndex:
    """Read the shard index of a folder; what is wrong with it is part of the description."""
    try:
        value = read_object(root / name, limit_of(INDEX_NAME))
    except UnreadableJson as problem:
        return ShardIndex(name=name, problem=str(problem))
    mapping = value.get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        return ShardIndex(name=name, problem="it has no weight_map")
    if not all(isinstance(shard, str) for shard in mapping.values()):
        return ShardIndex(name=name, problem="its weight_map names shards that are no text")
    shards = sorted(set(mapping.values()))
    escaping = tuple(
        shard for shard in shards if not is_plain_name(shard) or is_refused(root / shard)
    )
    inside = [shard for shard in shards if shard not in escaping]
    return ShardIndex(
        name=name,
        weight_map=mapping,
        escaping=escaping,
        missing=tuple(shard for shard in inside if not (root / shard).is_file()),
    )


def is_plain_name(name: str) -> bool:
    """Whether a text names something directly in a folder."""
    pure = PurePosixPath(name)
    if not name or not is_path(name) or len(pure.parts) != 1 or pure.parts[0] in ("..", "/"):
        return False
    return "\\" not in name and len(name.encode()) <= LONGEST_NAME


def leaves_folder(root: Path, name: str) -> bool:
    """Whether a file name leads out of its folder, by itself or as a link.

    Links into the `blobs` folder of a model-hub cache are allowed: that is its normal layout.
    """
    if not is_plain_name(name):
        return True
    path = root / name
    if not path.is_symlink():
        return False
    target = resolve(path)
    return target is None or not stays_at_home(root, target)


def _is_shard(name: str) -> bool:
    return SHARD.match(name) is not None and name.endswith((".safetensors", ".bin"))


def _adapter_files(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if name in names:
            return (name,)
    return ()


def _read(root: Path, name: str, budget: HeaderBudget | None = None) -> WeightFile:
    path = root / name
    described = read_weight_file(path, name, budget)
    if recognise(path) != "pickle":
        return described
    if described.problem in ("empty", "lfs-pointer", "unreadable"):
        return replace(described, kind="pickle")
    detail = "a pickle, which this tool never loads"
    size = path.stat().st_size
    if size < LEAST_PICKLE and _stores_nothing(path):
        told = "a pickle without any tensor"
        return WeightFile(name=name, size_bytes=size, problem="empty", detail=told, kind="pickle")
    return WeightFile(name=name, size_bytes=size, problem="pickled", detail=detail, kind="pickle")


def _stores_nothing(path: Path) -> bool:
    """Whether a short archive of torch.save has no values, going by its list of contents."""
    try:
        with ZipFile(path) as archive:
            entries = archive.infolist()
    except BROKEN_ARCHIVE:
        return False  # the old form, or broken: what reads pickles says more
    return not any("/data/" in entry.filename and entry.file_size for entry in entries)


def _unreadable(evidence: CheckpointEvidence, names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in JSON_FILES:
        if name in names:
            try:
                read_kept(evidence, name)
            except UnreadableJson as problem:
                found[name] = str(problem)
    return found


def read_settings(evidence: CheckpointEvidence, name: str) -> dict[str, Any]:
    """Return a configuration file of the subject as an object.

    Raises:
        Missing: it is absent or unreadable.
    """
    files: Files = evidence.get("files")
    if name not in files.names:
        if files.is_gguf:
            raise NotApplicable(f"a GGUF file holds its settings itself, without {name}")
        raise Missing(files.lacks(name))
    if name in files.unreadable_json:
        raise Missing(f"{name} cannot be read: {files.unreadable_json[name]}")
    try:
        return read_kept(evidence, name)
    except UnreadableJson as problem:
        raise Missing(f"{name} cannot be read: {problem}") from problem
