"""Read base and adapter for a merge from their files, and refuse a pair that is none. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mudpuppy.adapters.adapter_files import AdapterFiles, read_adapter
from mudpuppy.adapters.merge_plan import FLOATS, PackedBase, PackedEntry, Packing
from mudpuppy.adapters.tensor_names import HEADS
from mudpuppy.errors import ModelError, shown
from mudpuppy.features import MOST_QUANT_SEARCH
from mudpuppy.provenance import fingerprint_model, read_provenance
from mudpuppy.quant.declared import MOST_BLOCK, find_declared, read_settings
from mudpuppy.safefile import ITEM_BYTES, TensorEntry, checkpoint_tensors

SCHEMES = {
    "nf4-blockwise": "nf4",
    "int4-symmetric-blockwise": "int4",
    "mxfp4-blockwise": "mxfp4",
    "int8-symmetric-blockwise": "int8",
}
"""The ways of packing that a merge can repeat, and their formats (mudpuppy.quant.formats)."""
TORCH_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Types as config.json calls them."""
SEEN = {"fp32": "F32", "bf16": "BF16", "fp16": "F16", "fp8": "BF16"}
"""Type in which a base is held while an adapter trains, by the run's precision."""
_LOOKS_QUANTISED = re.compile(r"bnb|4bit|8bit|gptq|awq|nf4|mxfp4", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A base and an adapter that belong together."""

    base: Path
    """The base's folder."""
    config: dict[str, Any]
    """Its config.json."""
    tensors: Mapping[str, TensorEntry]
    """Its tensors; without an output layer that the config ties."""
    is_tied: bool
    """Whether the output layer has the embedding's weights."""
    fingerprint: str | None
    """Its fingerprint."""
    adapter: AdapterFiles
    """The adapter."""
    provenance: dict[str, Any]
    """The adapter's mudpuppy.json, or nothing."""
    packed: PackedBase | None
    """How the base was quantised while the adapter was trained."""
    seen: str | None
    """Type in which a quantised base was held before that."""
    is_packed: bool
    """Whether the base itself lies in 4 bits."""


def read_inputs(
    base: Path, adapter: Path, *, other_base: bool = False, say: Callable[[str], None]
) -> Inputs:
    """Read headers and settings of both.

    Args:
        base: model folder with safetensors.
        adapter: folder of a LoRA adapter.
        other_base: accept a base whose fingerprint is another one than the adapter's.
        say: told what cannot be checked.

    Raises:
        ModelError: one of them cannot be used, or the base is not the adapter's.
    """
    files = read_adapter(adapter)
    config = read_settings(base)
    try:
        tensors = checkpoint_tensors(base)
        fingerprint = fingerprint_model(base)
        provenance = read_provenance(adapter) or {}
    except (OSError, ValueError) as error:
        raise ModelError(f"the checkpoint cannot be read: {error}") from error
    if not tensors:
        raise ModelError(
            f"{base} holds no safetensors weights",
            hint="save the base with safetensors first; pickled weights are never loaded",
        )
    held, is_packed = _unpacked(base, config, tensors)
    _require_same_base(base, fingerprint, files, provenance, other_base, say)
    is_tied = _ties(config) is not False
    if _ties(config):
        # a loader that ties never reads the file's own output layer
        heads = tuple(f".{head}.weight" for head in HEADS)
        held = {n: e for n, e in held.items() if not f".{n}".endswith(heads)}
    # a base that lies in 4 bits is what the adapter saw
    packed = None if is_packed else _packed(files, provenance)
    return Inputs(
        base=base,
        config=config,
        tensors=held,
        is_tied=is_tied,
        fingerprint=fingerprint,
        adapter=files,
        provenance=provenance,
        packed=packed,
        is_packed=is_packed,
        seen=SEEN.get(str(provenance.get("precision"))) if packed else None,
    )


def _ties(config: Mapping[str, Any]) -> bool | None:
    """Return what the config says of tied embeddings; None where it says nothing."""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    return None


def _unpacked(
    base: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]
) -> tuple[Mapping[str, TensorEntry], bool]:
    """Return the tensors with those of 4-bit layers in the form of plain weights, and whether any.

    Raises:
        ModelError: the base is packed in a way that is not read here, or damaged (MP-Q01 to Q04).
    """
    declared = find_declared(base, config)
    method = declared.get("quant_method")
    if method not in ("mudpuppy", "bitsandbytes") or declared.get("load_in_8bit"):
        _refuse_quantised(base, declared, tensors)
        return tensors, False
    # torch comes with the formats; a base that is plain is planned without
    from mudpuppy.quant.bnb_files import BNB_PARTS
    from mudpuppy.quant.layer_files import find_layers
    from mudpuppy.stored import Reader

    reader = Reader()
    try:
        layers = find_layers(base, tensors, declared, reader)
    finally:
        reader.close()
    parts = ("weight", "qweight", "scales", *BNB_PARTS)
    packed = {f"{name}.{part}": name for name in layers for part in parts}
    kind = _float_type(config)
    made: dict[str, TensorEntry] = {}
    for name, entry in tensors.items():  # in the order of the files
        layer = layers.get(packed.get(name, ""))
        if layer is None:
            made[name] = entry
            continue
        weight = f"{layer.name}.weight"
        size = layer.rows * layer.columns * ITEM_BYTES[kind]
        made[weight] = PackedEntry(weight, entry.file, kind, layer.shape, 0, size, layer)
    _refuse_quantised(base, declared, made)
    return made, True


def _float_type(config: Mapping[str, Any]) -> str:
    """Return the type of a model's plain weights, as config.json tells it; else bf16."""
    said = str(config.get("dtype") or config.get("torch_dtype"))
    return next((kind for kind, name in TORCH_NAMES.items() if name == said), "BF16")


def _refuse_quantised(
    base: Path, declared: Mapping[str, Any], tensors: Mapping[str, TensorEntry]
) -> None:
    """Refuse a base whose weights are packed: nothing can be added to those."""
    packed = [entry for entry in tensors.values() if entry.dtype not in FLOATS]
    if declared and packed:
        method = declared.get("quant_method")
        raise ModelError(
            f"{base} is quantised ({shown(method)}): {packed[0].name} is {packed[0].dtype}",
            hint="merge into the 16-bit model that it was made from, or dequantise it first",
        )


def _require_same_base(
    base: Path,
    fingerprint: str | None,
    adapter: AdapterFiles,
    provenance: Mapping[str, Any],
    other_base: bool,
    say: Callable[[str], None],
) -> None:
    """Refuse a base that is not the one the adapter was trained on, as far as that is known."""
    trained_on = provenance.get("base")
    trained_on = trained_on if isinstance(trained_on, dict) else {}
    expected = trained_on.get("fingerprint")
    named = adapter.settings.get("base_model_name_or_path")
    if not expected:
        say(f"whether {base} is the adapter's base is not recorded; it names {shown(named)}")
        if _LOOKS_QUANTISED.search(str(named)):
            say(
                "warning: the adapter was trained on quantised weights, and how they were rounded "
                "is not recorded: merged into others it is a slightly different model (FM13)"
            )
    elif fingerprint != expected and not other_base:
        raise ModelError(
            f"the adapter {adapter.folder} was trained on another base than {base}: fingerprint "
            f"{shown(expected)[:14]}... ({shown(trained_on.get('name'))}), not {fingerprint}",
            hint="name the base it was trained on, or add --other-base if you know it is the same",
        )
    elif fingerprint != expected:
        say("warning: the adapter was trained on another base; merging as asked")


def _packed(adapter: AdapterFiles, provenance: Mapping[str, Any]) -> PackedBase | None:
    """Return how the base was quantised in training.

    Raises:
        ModelError: it was, in a way that cannot be repeated here.
    """
    said = provenance.get("quantisation")
    if not isinstance(said, dict) or not said:
        return None
    block: Any = said.get("block_size")
    search: Any = said.get("search", 0)
    form, modules = SCHEMES.get(str(said.get("scheme"))), said.get("modules")
    is_whole = type(block) is int and type(search) is int
    fits = is_whole and 1 <= block <= MOST_BLOCK and 0 <= search <= MOST_QUANT_SEARCH
    if form is None or not fits:
        raise ModelError(
            f"{adapter.folder} was trained on {shown(said)}, which cannot be repeated here",
            hint="merge it where it was trained: --merge-lora",
        )
    if modules is None:
        config = provenance.get("config")
        targets = config.get("lora_target_modules") if isinstance(config, dict) else None
        if targets != ["all-linear"]:
            raise ModelError(
                f"{adapter.folder} was trained on 4-bit weights, and its mudpuppy.json does not "
                "say which",
                hint="merge it where it was trained: --merge-lora",
            )
        modules = list(adapter.modules)
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise ModelError(f"{adapter.folder}: mudpuppy.json lists no modules: {shown(modules)}")
    packing = Packing(format=form, block_size=block, search=search)
    return PackedBase(packing=packing, modules=tuple(modules))
