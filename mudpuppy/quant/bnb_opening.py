"""Checkpoints of bitsandbytes as transformers is to read them: our layout, or plain weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mudpuppy.quant.bnb_files import BNB_PARTS
from mudpuppy.quant.checks import Form, refuse, require_parts, require_scales
from mudpuppy.quant.codes import UNKNOWN_SCHEME, WRONG_FORM
from mudpuppy.quant.packed_files import OWN_METHOD, VERSION, Entries, StoredLayer, group_parts
from mudpuppy.safefile import TensorEntry
from mudpuppy.stored import Later, Reader, read_later

OF_SCB = 1 / 127
"""bitsandbytes' int8: what SCB is multiplied by for the value of level 1."""


def translate_4bit(
    folder: Path, tensors: Entries, layers: Mapping[str, StoredLayer], reader: Reader
) -> tuple[dict[str, Later], dict[str, Any]]:
    """Return a state dict in our layout for a model of bitsandbytes, and what declares it.

    Args:
        folder: for messages.
        tensors: all tensors of the checkpoint.
        layers: its packed layers.
        reader: reads them when they are asked for.

    Raises:
        QuantisedModelError: MP-Q01, no layer is packed, or they are in several formats.
    """
    where = str(folder)
    if not layers:
        raise refuse(UNKNOWN_SCHEME, where, "it declares bitsandbytes, and no layer is packed")
    formats = {layer.format.name for layer in layers.values()}
    if len(formats) > 1:
        raise refuse(UNKNOWN_SCHEME, where, f"its layers are in several formats: {sorted(formats)}")
    # one block size for the model: the largest that every layer's blocks are multiples of
    block = math.gcd(*(layer.block_size for layer in layers.values()))
    parts = {f"{name}.{part}" for name in layers for part in ("weight", *BNB_PARTS)}
    state = read_later({n: e for n, e in tensors.items() if n not in parts}, reader)
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


def translate_8bit(
    folder: Path, tensors: Entries, dtype: torch.dtype, reader: Reader
) -> dict[str, Later]:
    """Return a state dict of plain weights in `dtype` for a model in bitsandbytes' int8.

    Raises:
        QuantisedModelError: MP-Q02 or MP-Q03, parts of a layer are missing, or do not fit.
    """
    groups = group_parts(tensors, ("SCB", "weight_format"))
    parts = {f"{name}.{part}" for name in groups for part in ("weight", "SCB", "weight_format")}
    state = read_later({n: e for n, e in tensors.items() if n not in parts}, reader)
    for name, found in groups.items():
        where = f"{folder}: {name}"
        weight = tensors.get(f"{name}.weight")
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
