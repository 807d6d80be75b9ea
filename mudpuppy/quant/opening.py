"""Open a base model in 4 bits: quantised while it is read, or as somebody has quantised it before.

transformers makes the model and finds the place of every tensor, as it always does; here is what it
reads. What the checkpoint is comes from its own config.json:

    plain                       with `fourbit` it is quantised, one tensor at a time
    ours (`mudpuppy`)           opened as it is
    bitsandbytes, NF4 or FP4    opened as our layers, with exactly the same values, without
                                bitsandbytes (`mudpuppy.quant.bnb_files`)
    bitsandbytes, int8          opened as plain layers: int8 level * SCB / 127
    another method              left to transformers

Everything is read into memory of its own, tensor by tensor: at no time is there more than what the
model is going to need, and the tensor that is on its way.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig

from mudpuppy.errors import ModelError, shown
from mudpuppy.quant.bnb_files import BNB_METHOD, BNB_PARTS
from mudpuppy.quant.checks import Form, QuantisedModelError, refuse, require_parts, require_scales
from mudpuppy.quant.codes import UNKNOWN_SCHEME, WRONG_FORM, WRONG_USE
from mudpuppy.quant.layer_files import find_layers
from mudpuppy.quant.packed_files import (
    OWN_METHOD,
    VERSION,
    Entries,
    StoredLayer,
    group_parts,
)
from mudpuppy.quant.places import find_linear, live_names
from mudpuppy.quant.registered import FourBitConfig
from mudpuppy.safefile import TensorEntry, checkpoint_tensors
from mudpuppy.stored import Later, Reader, read_later

OF_SCB = 1 / 127
"""bitsandbytes' int8: what SCB is multiplied by for the value of level 1."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """What a model folder holds."""

    folder: Path
    """Where."""
    tensors: Entries
    """Its tensors; empty where they are not in safetensors."""
    declared: Mapping[str, Any] = field(default_factory=dict)
    """Its `quantization_config`."""

    @property
    def method(self) -> str:
        """The method that it was quantised with; empty for a plain model."""
        return str(self.declared.get("quant_method") or "")

    @property
    def is_4bit(self) -> bool:
        """Whether its layers become `Linear4bit`."""
        is_bnb = self.method == BNB_METHOD and not self.declared.get("load_in_8bit")
        return self.method == OWN_METHOD or is_bnb


def read_base(folder: Path) -> Base:
    """Read config.json and the headers of a model folder.

    Raises:
        ModelError: a file is damaged.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = checkpoint_tensors(folder)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ModelError(f"{folder}: the model cannot be loaded: {reason}") from error
    return Base(folder=folder, tensors=tensors, declared=find_declared(config))


def is_declared(folder: Path) -> bool:
    """Whether a folder's config.json says that its model is quantised."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False  # transformers says better what is wrong with it
    return bool(find_declared(config))


def find_declared(config: Any) -> dict[str, Any]:
    """Return the `quantization_config` of a config.json, also that of its text part."""
    parts = [config, config.get("text_config")] if isinstance(config, dict) else []
    for part in parts:
        found = part.get("quantization_config") if isinstance(part, dict) else None
        if isinstance(found, dict) and found:
            return dict(found)
    return {}


def require_use(base: Base, *, method: str, quant: str | None) -> None:
    """Refuse a base in 4 bits for anything but what an adapter beside it needs.

    Args:
        base: the base.
        method: what is to be trained.
        quant: the format that was asked for by name.

    Raises:
        ModelError: MP-Q06.
    """
    if not base.is_4bit:
        return
    where = str(base.folder)
    if method != "qlora":
        raise QuantisedModelError(
            f"{where}: the model is in 4 bits ({base.method}), and --method {method} needs a plain "
            "one",
            code=WRONG_USE,
            hint="use --method qlora, or the 16-bit model that it was made from",
        )
    held = base.declared.get("format") if base.method == OWN_METHOD else f"{BNB_METHOD}'s own"
    if quant is not None and quant != held:
        raise QuantisedModelError(
            f"{where}: the model is in 4 bits already ({shown(held)}), and --quant says {quant}",
            code=WRONG_USE,
            hint="leave out --quant",
        )


def open_base(
    base: Base,
    auto_class: str,
    *,
    dtype: torch.dtype,
    fourbit: FourBitConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Open a model on the CPU.

    Args:
        base: what to open.
        auto_class: transformers' class that opens it.
        dtype: type of everything that is not packed, and of the products.
        fourbit: how a plain base is quantised; None to leave it plain.
        settings: what is changed in the model's config, such as `num_labels`.
        trust_remote_code: as in transformers.

    Returns:
        The model, and transformers' report of missing and unexpected tensors.

    Raises:
        ModelError: MP-Q01 to MP-Q04, the base is damaged; or a weight is not finite.
    """
    kind: Any = getattr(transformers, auto_class)
    quantise = {} if fourbit is None or base.is_4bit else {"quantization_config": fourbit}
    read_by_us = base.tensors and base.method in ("", OWN_METHOD, BNB_METHOD)
    if not read_by_us or trust_remote_code:
        return kind.from_pretrained(  # type: ignore[no-any-return]
            str(base.folder),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **(settings or {}),
            **quantise,
        )
    reader = Reader()
    try:
        state, declared, layers = _state(base, dtype, reader)
        config = AutoConfig.from_pretrained(base.folder, **(settings or {}))
        with torch.device("meta"):  # transformers chooses the class, and the part of the config
            make = getattr(kind, "from_config", kind)  # an Auto class, or the model's own
            empty = make(copy.deepcopy(config))
        _require_shapes(empty, layers)
        config = empty.config
        _declare(config, declared)
        model, report = type(empty).from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            output_loading_info=True,
            **quantise,
        )
    finally:
        reader.close()
    _name(model, base.folder)
    return model, report


def _name(model: Any, folder: Path) -> None:
    """Let a model know where it is from, and how it generates: what a path would have told it."""
    model.name_or_path = model.config._name_or_path = str(folder)
    if model.can_generate():
        words: dict[str, Any] = {
            "cache_dir": None,
            "force_download": False,
            "proxies": None,
            "token": None,
        }
        words |= {"local_files_only": True, "revision": None, "subfolder": ""}
        model.adjust_generation_fn(None, True, None, str(folder), trust_remote_code=False, **words)


def _declare(config: Any, declared: Mapping[str, Any] | None) -> None:
    """Exchange what a config says of its quantisation."""
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    if declared is not None:
        config.quantization_config = dict(declared)


def _require_shapes(model: nn.Module, layers: Mapping[str, StoredLayer]) -> None:
    """Refuse packed layers of another shape than the model's.

    Raises:
        QuantisedModelError: MP-Q01, the model has no such linear layer; MP-Q03.
    """
    names = live_names(model, [f"{name}.weight" for name in layers])
    for name, layer in layers.items():
        live = names[f"{name}.weight"].removesuffix(".weight")
        linear = find_linear(model, live)
        shape = (linear.out_features, linear.in_features)
        if layer.shape != shape:
            problem = f"the levels are of the shape {list(layer.shape)}, the model's {list(shape)}"
            raise refuse(WRONG_FORM, layer.where, problem)


def _state(
    base: Base, dtype: torch.dtype, reader: Reader
) -> tuple[dict[str, Later], dict[str, Any] | None, dict[str, StoredLayer]]:
    """Return the tensors of a base in our layout, what declares them, and the packed layers."""
    if not base.is_4bit:
        if base.method == BNB_METHOD:
            return _translate_8bit(base, dtype, reader), None, {}
        return read_later(base.tensors, reader), None, {}
    layers = find_layers(base.folder, base.tensors, base.declared, reader)
    if base.method == OWN_METHOD:
        return read_later(base.tensors, reader), dict(base.declared), layers
    return *_translate_4bit(base, layers, reader), layers


def _translate_4bit(
    base: Base, layers: Mapping[str, StoredLayer], reader: Reader
) -> tuple[dict[str, Later], dict[str, Any]]:
    """Return a state dict in our layout for a model of bitsandbytes, and what declares it."""
    where = str(base.folder)
    if not layers:
        raise refuse(UNKNOWN_SCHEME, where, "it declares bitsandbytes, and no layer is packed")
    formats = {layer.format.name for layer in layers.values()}
    if len(formats) > 1:
        raise refuse(UNKNOWN_SCHEME, where, f"its layers are in several formats: {sorted(formats)}")
    # one block size for the model: the largest that every layer's blocks are multiples of
    block = math.gcd(*(layer.block_size for layer in layers.values()))
    parts = {f"{name}.{part}" for name in layers for part in ("weight", *BNB_PARTS)}
    state = read_later({n: e for n, e in base.tensors.items() if n not in parts}, reader)
    for name, layer in layers.items():
        both = _Both(replace(layer, block_size=block), reader)
        state[f"{name}.qweight"] = Later("U8", both.take_levels)
        state[f"{name}.scales"] = Later("F32", both.take_scales)
    odd = [name for name, layer in layers.items() if layer.columns % 2]
    said = {"quant_method": OWN_METHOD, "version": VERSION, "format": formats.pop()}
    return state, {**said, "block_size": block, "modules": list(layers), "odd": odd or None}


class _Both:
    """Levels and scales of a layer, which are made together and asked for one after the other."""

    def __init__(self, layer: StoredLayer, reader: Reader) -> None:
        self._layer, self._reader = layer, reader
        self._kept: dict[str, Tensor] = {}

    def _take(self, part: str) -> Tensor:
        if part not in self._kept:
            packed = self._layer.read(self._reader)
            self._kept = {"qweight": packed.qweight, "scales": packed.scales}
        return self._kept.pop(part)

    def take_levels(self) -> Tensor:
        """Return `qweight`."""
        return self._take("qweight")

    def take_scales(self) -> Tensor:
        """Return `scales`."""
        return self._take("scales")


def _translate_8bit(base: Base, dtype: torch.dtype, reader: Reader) -> dict[str, Later]:
    groups = group_parts(base.tensors, ("SCB", "weight_format"))
    parts = {f"{name}.{part}" for name in groups for part in ("weight", "SCB", "weight_format")}
    state = read_later({n: e for n, e in base.tensors.items() if n not in parts}, reader)
    for name, found in groups.items():
        where = f"{base.folder}: {name}"
        weight = base.tensors.get(f"{name}.weight")
        entries = {**found, **({} if weight is None else {"weight": weight})}
        seen = {part: (entry.dtype, entry.shape) for part, entry in entries.items()}
        shape = weight.shape if weight is not None else (0, 0)
        if len(shape) != 2:
            raise refuse(WRONG_FORM, where, f"weight has the shape {list(shape)}")
        wanted = {"weight": Form(("I8",), shape), "SCB": Form(("F32",), shape[:1])}
        require_parts(where, seen, wanted)
        state[f"{name}.weight"] = Later("F32", _Rows(where, entries, dtype, reader).make)
    return state


@dataclass(frozen=True)
class _Rows:
    """One layer of bitsandbytes' int8, dequantised when it is asked for."""

    where: str
    entries: Mapping[str, TensorEntry]
    dtype: torch.dtype
    reader: Reader

    def make(self) -> Tensor:
        """Return the weight in `dtype`, made in fp32 a few rows at a time."""
        scales = self.reader.read(self.entries["SCB"])
        require_scales(self.where, "SCB", scales)
        levels = self.reader.read(self.entries["weight"], None)
        made = torch.empty(levels.shape, dtype=self.dtype)
        for start in range(0, levels.shape[0], 256):
            stop = start + 256
            rows = levels[start:stop].float() * scales[start:stop, None]
            made[start:stop] = rows * OF_SCB
        return made


def open_model(
    folder: Path | str,
    dtype: torch.dtype = torch.bfloat16,
    *,
    auto_class: str = "AutoModelForCausalLM",
    fourbit: FourBitConfig | None = None,
) -> Any:
    """Open a model, also one that bitsandbytes quantised, without bitsandbytes.

    Args:
        folder: the model; a folder with safetensors.
        dtype: type of everything that is not packed, and of the products.
        auto_class: transformers' class that opens it.
        fourbit: how a plain model is quantised on the way; None to leave it plain.

    Raises:
        ModelError: it is damaged (MP-Q01 to MP-Q04), or tensors are missing.
    """
    base = read_base(Path(folder))
    model, report = open_base(base, auto_class, dtype=dtype, fourbit=fourbit)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{folder}: {len(missing)} tensors are missing, such as {missing[0]}")
    return model
