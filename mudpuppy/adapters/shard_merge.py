"""Merge an adapter into a checkpoint on disk, block by block; the model is never held in memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from mudpuppy.adapters.fold import Workspace, fold
from mudpuppy.adapters.merge_inputs import TORCH_NAMES, Inputs, read_inputs
from mudpuppy.adapters.merge_plan import FLOATS, Output, Packing, Plan, plan_merge
from mudpuppy.adapters.repack import Repacking, part_shapes, repack
from mudpuppy.errors import OutputError
from mudpuppy.files import write_json_atomic
from mudpuppy.preflight import locked
from mudpuppy.provenance import (
    PROVENANCE_FILE,
    PROVENANCE_SCHEMA_VERSION,
    package_versions,
)
from mudpuppy.refusals import telling_of_failed_writes
from mudpuppy.safefile import INDEX_FILE, ITEM_BYTES, SINGLE_FILE, pack_header
from mudpuppy.saving import staging
from mudpuppy.stored import DTYPES, Reader
from mudpuppy.telling import format_bytes

TYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
"""Types by the names that the flags use."""
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"),
    *("chat_template.jinja", "chat_template.json"),
)
"""Files of a tokenizer: they are taken together, from the adapter where it has a tokenizer."""
OTHER_FILES = (
    *("generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("video_preprocessor_config.json", "image_processor_config.json"),
)
"""Files of the base that are copied as they are."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge wrote."""

    output: str
    """The folder."""
    precision: str
    """Type of the weights as the format calls it; several where the base has several."""
    tensors: int
    """Tensors of the model."""
    changed: int
    """Tensors that the adapter changed."""
    shards: int
    """Weights files."""
    bytes: int
    """Bytes of all tensors."""
    quantisation: dict[str, Any] | None = None
    """How it was written in few bits, and what each layer lost; None in 16 bits or more."""


def merge_shards(
    base: Path,
    adapter: Path,
    output: Path,
    *,
    precision: str | None = None,
    packing: Packing | None = None,
    max_shard_bytes: int | None = None,
    other_base: bool = False,
    inspect: Callable[[Path, Inputs], None] | None = None,
    say: Say = lambda _: None,
) -> MergeReport:
    """Write the model that an adapter makes of its base to `output`.

    Every weight is `W + scale * BA`, summed in fp32 and rounded once: bit for bit what PEFT's
    `merge_and_unload` and saving make of a float base on the same machine. At most the factors of
    one module and a few blocks of 4 MB are held.

    Args:
        base: model folder with safetensors.
        adapter: folder of a LoRA adapter.
        output: folder that is empty or does not exist; complete afterwards, or not there.
        precision: fp32, bf16 or fp16; by default every tensor keeps its own type.
        packing: few bits in which the layers are written that the adapter saw so, or where it saw
            none every linear layer of the decoder blocks; by default none are.
        max_shard_bytes: longest weights file; by default the base's division is kept.
        other_base: merge although the adapter was trained on another base.
        inspect: called with the finished folder before it is published; what it raises stops that.
        say: called with what is about to happen, one line each.

    Raises:
        ModelError: base or adapter cannot be used, or they do not belong together.
        OutputError: the output folder may not be written.
        EngineError: MP-E09, a merged value is not finite; or the disk is full.
    """
    inputs = read_inputs(base, adapter, other_base=other_base, say=say)
    plan = plan_merge(inputs.adapter, inputs.tensors, is_tied=inputs.is_tied, packed=inputs.packed)
    config = make_config(inputs.config, plan, precision)
    repacking = None
    if packing is not None:
        # transformers, which knows the model's layers, takes seconds to import
        from mudpuppy.adapters.repack_plan import declare, plan_repacking

        plan, repacking = plan_repacking(plan, config, packing)
        config = declare(config, repacking)
    shards = _divide(plan.outputs, precision, max_shard_bytes)
    size = sum(_size(one, precision) for one in plan.outputs)
    say(f"merging {plan.num_changed} of {len(plan.outputs)} tensors, {format_bytes(size)}")
    with _empty_again(output), _one_thread(), telling_of_failed_writes(output), locked(output):
        _require_space(output, size)
        with staging(output) as folder:
            _write_shards(folder, shards, precision, inputs, repacking)
            _copy_files(folder, inputs)
            write_json_atomic(folder / "config.json", config)
            for line in () if repacking is None else repacking.tell():
                say(line)
            if inspect is not None:
                inspect(folder, inputs)
            report = MergeReport(
                output=str(output),
                precision=" ".join(sorted({_kind(o, precision) for o in plan.outputs})),
                tensors=len(plan.outputs),
                changed=plan.num_changed,
                shards=len(shards),
                bytes=size,
                quantisation=None if repacking is None else repacking.describe(),
            )
            found_at = os.path.relpath(inputs.adapter.folder.resolve(), output.resolve())
            manifest = {**_provenance(inputs, report), "adapter": found_at}
            write_json_atomic(folder / PROVENANCE_FILE, manifest)
    return report


@contextmanager
def _empty_again(output: Path) -> Iterator[None]:
    """Take a folder away again that was made and stayed empty."""
    is_new = not output.exists()
    try:
        yield
    finally:
        if is_new and output.is_dir() and not any(output.iterdir()):
            output.rmdir()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread.

    The blocks are small: several threads gain little, and on a busy machine they wait for each
    other ten times as long as they work (measured: 0.97 s against 9.4 s).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _require_space(output: Path, size: int) -> None:
    free = shutil.disk_usage(output).free
    if free < size:
        raise OutputError(
            f"{output} needs {format_bytes(size)}, and {format_bytes(free)} are free there",
            hint="name a folder on another disk",
        )


def _dtype(output: Output, precision: str | None) -> str:
    is_float = output.home.dtype in FLOATS
    return TYPES[precision] if precision is not None and is_float else output.home.dtype


def _kind(output: Output, precision: str | None) -> str:
    return _dtype(output, precision) if output.packed_as is None else output.packed_as.format


def _size(output: Output, precision: str | None) -> int:
    return sum(size for *_, size in _parts(output, precision))


def _parts(output: Output, precision: str | None) -> list[tuple[str, str, tuple[int, ...], int]]:
    """Return name, type, shape and bytes of what is written of a tensor, in the order of a file."""
    if output.packed_as is not None:
        parts = part_shapes(output)
        return [(name, kind, sh, prod(sh) * ITEM_BYTES[kind]) for name, kind, sh in parts]
    source, kind = output.source, _dtype(output, precision)
    size = source.size
    if source.dtype in FLOATS:
        size = size // ITEM_BYTES[source.dtype] * ITEM_BYTES[kind]
    return [(output.name, kind, source.shape, size)]


def _divide(
    outputs: Sequence[Output], precision: str | None, max_bytes: int | None
) -> dict[str, list[Output]]:
    """Return the tensors of every weights file by its name; by default divided as the base is."""
    groups: list[list[Output]] = []
    if max_bytes is None:
        by_file: dict[str, list[Output]] = {}
        for output in outputs:
            by_file.setdefault(output.home.file.name, []).append(output)
        if len(by_file) > 1:
            return by_file
        groups = list(by_file.values())
    else:
        filled = 0
        for output in outputs:
            size = _size(output, precision)
            if not groups or filled + size > max_bytes:
                groups.append([])
                filled = 0
            groups[-1].append(output)
            filled += size
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    names = (f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1))
    return dict(zip(names, groups, strict=True))


def _write_shards(
    folder: Path,
    shards: Mapping[str, Sequence[Output]],
    precision: str | None,
    inputs: Inputs,
    repacking: Repacking | None,
) -> None:
    """Write every weights file, and the index where there are several."""
    reader = Reader()
    work = Workspace(reader, seen_dtype=DTYPES.get(inputs.seen or ""))
    try:
        for name, outputs in shards.items():
            _write_shard(folder / name, outputs, precision, work, repacking)
    finally:
        reader.close()
    if len(shards) > 1:
        written = {name: _described(outputs, precision) for name, outputs in shards.items()}
        placed = {part[0]: name for name, parts in written.items() for part in parts}
        total = sum(size for parts in written.values() for *_, size in parts)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        write_json_atomic(folder / INDEX_FILE, index)


def _described(
    outputs: Sequence[Output], precision: str | None
) -> list[tuple[str, str, tuple[int, ...], int]]:
    return [part for output in outputs for part in _parts(output, precision)]


def _write_shard(
    path: Path,
    outputs: Sequence[Output],
    precision: str | None,
    work: Workspace,
    repacking: Repacking | None,
) -> None:
    """Write one weights file: the header, which follows from the plan, then block after block."""
    described = _described(outputs, precision)
    header = pack_header(described)
    whole = len(header) + sum(size for *_, size in described)
    with path.open("wb", buffering=0) as handle:
        _write(handle, memoryview(header))
        for output in outputs:
            if output.packed_as is not None and repacking is not None:
                blocks = repack(output, work, repacking)
            else:
                blocks = fold(output, _dtype(output, precision), work)
            for block in blocks:
                _write(handle, block)
        if handle.tell() != whole:
            raise OSError(f"{path.name} has {handle.tell()} bytes, not {whole}")


def _write(handle: Any, block: memoryview) -> None:
    while len(block):
        block = block[handle.write(block) :]


def make_config(
    config: Mapping[str, Any], plan: Plan, precision: str | None = None
) -> dict[str, Any]:
    """Return config.json of the merged model."""
    made = json.loads(json.dumps(config))
    parts = [made, *(part for part in made.values() if isinstance(part, dict))]
    text = next((p for p in parts[1:] if "vocab_size" in p and "hidden_size" in p), made)
    for part in parts:
        part.pop("quantization_config", None)
        for key in ("dtype", "torch_dtype"):
            if precision is not None and part.get(key) is not None:
                part[key] = TORCH_NAMES[TYPES[precision]]
        if plan.unties and ("tie_word_embeddings" in part or part is made):
            part["tie_word_embeddings"] = False
    if plan.vocabulary is not None:
        for part in (made, text):
            if part is text or "vocab_size" in part:
                part["vocab_size"] = plan.vocabulary
    if plan.labels is not None:
        names = made.get("architectures") or []
        made["architectures"] = [name.replace("ForCausalLM", plan.classifier) for name in names]
        made["id2label"] = {str(i): f"LABEL_{i}" for i in range(plan.labels)}
        made["label2id"] = {f"LABEL_{i}": i for i in range(plan.labels)}
    return dict(made)


def _copy_files(folder: Path, inputs: Inputs) -> None:
    """Copy tokenizer, chat template and generation settings."""
    adapter = inputs.adapter.folder
    has_own = any((adapter / n).is_file() for n in ("tokenizer.json", "tokenizer_config.json"))
    tokenizer = adapter if has_own else inputs.base
    wanted = [tokenizer / name for name in TOKENIZER_FILES]
    wanted += [inputs.base / name for name in OTHER_FILES]
    for path in wanted:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    for path in inputs.base.glob("*.py"):  # code that the config names
        if path.is_file() and "auto_map" in inputs.config:
            shutil.copyfile(path, folder / path.name)


def _provenance(inputs: Inputs, report: MergeReport) -> dict[str, Any]:
    """Return what mudpuppy.json says: the adapter's own story, and the merge after it."""
    own = inputs.provenance
    base = {
        "name": str(inputs.base),
        "path": str(inputs.base),
        "revision": inputs.base.name if inputs.base.parent.name == "snapshots" else None,
        "fingerprint": inputs.fingerprint,
    }
    return {
        "method": None,
        "trainable": {},
        "labels": None,
        "quantisation": {},
        "chat_template_hash": None,
        **own,
        "schema_version": PROVENANCE_SCHEMA_VERSION,
        "kind": "merged",
        "precision": own.get("precision"),
        "base": base,
        "merge": asdict(report),
        "versions": package_versions(),
        "torch": {"hip": torch.version.hip, "cuda": torch.version.cuda},
    }
