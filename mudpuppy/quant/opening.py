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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

from mudpuppy.errors import ModelError, shown
from mudpuppy.quant.bnb_files import BNB_METHOD
from mudpuppy.quant.bnb_opening import translate_4bit, translate_8bit
from mudpuppy.quant.checks import QuantisedModelError, refuse
from mudpuppy.quant.codes import UNKNOWN_SCHEME, WRONG_FORM, WRONG_USE
from mudpuppy.quant.declared import exchange, find_declared, read_settings
from mudpuppy.quant.layer_files import find_layers
from mudpuppy.quant.packed_files import OWN_METHOD, Entries, StoredLayer
from mudpuppy.quant.places import find_linear, live_names
from mudpuppy.quant.plain import require_plain
from mudpuppy.quant.registered import OPENED, FourBitConfig
from mudpuppy.safefile import checkpoint_tensors
from mudpuppy.stored import Later, Reader, read_later


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
    declared = find_declared(folder, read_settings(folder))
    try:
        tensors = checkpoint_tensors(folder)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ModelError(f"{folder}: the model cannot be loaded: {reason}") from error
    return Base(folder=folder, tensors=tensors, declared=declared)


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
        if base.tensors and not base.method:
            empty = _make_empty(kind, base.folder, settings, trust_remote_code)
            require_plain(str(base.folder), empty, base.tensors)
        return kind.from_pretrained(  # type: ignore[no-any-return]
            str(base.folder),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **(settings or {}),
            **quantise,
        )
    reader = Reader()
    token = OPENED.set(str(base.folder))
    try:
        state, declared, layers = _state(base, dtype, reader)
        empty = _make_empty(kind, base.folder, settings)
        _require_shapes(empty, layers)
        require_plain(str(base.folder), empty, base.tensors, _packed_weights(base, layers))
        config = empty.config
        exchange(config, declared)
        model, report = type(empty).from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            output_loading_info=True,
            **quantise,
        )
    finally:
        OPENED.reset(token)
        reader.close()
    _name(model, base.folder)
    return model, report


def _make_empty(
    kind: Any, folder: Path, settings: Mapping[str, Any] | None, trust_remote_code: bool = False
) -> Any:
    """Return the model on `meta`: transformers chooses the class, and the part of the config."""
    words = {"trust_remote_code": True} if trust_remote_code else {}
    config = AutoConfig.from_pretrained(folder, **words, **(settings or {}))
    text = getattr(config, "text_config", None)
    if isinstance(text, dict):
        problem = f"a {config.model_type} model has no text_config"
        raise refuse(UNKNOWN_SCHEME, f"{folder}/config.json", problem)
    with torch.device("meta"):
        make = getattr(kind, "from_config", kind)  # an Auto class, or the model's own
        return make(copy.deepcopy(config), **words)


def _packed_weights(base: Base, layers: Mapping[str, StoredLayer]) -> set[str]:
    """Return the names of the weights that are levels."""
    found = {f"{name}.weight" for name in layers}
    if base.method == BNB_METHOD:
        found |= {f"{name[:-4]}.weight" for name in base.tensors if name.endswith(".SCB")}
    return found


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
            return translate_8bit(base.folder, base.tensors, dtype, reader), None, {}
        return read_later(base.tensors, reader), None, {}
    layers = find_layers(base.folder, base.tensors, base.declared, reader)
    if base.method == OWN_METHOD:
        return read_later(base.tensors, reader), dict(base.declared), layers
    return *translate_4bit(base.folder, base.tensors, layers, reader), layers


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
