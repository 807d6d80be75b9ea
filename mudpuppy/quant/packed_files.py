"""Layers in 4 or 8 bits as our checkpoints hold them, whole or some rows of them.

`qweight` is uint8, (out, ceil(in / 2)), the even column low, or (out, in) in int8; `scales` one for
every block of a row: see `mudpuppy.quant.formats`. What declares them is `quantization_config` in
config.json: format, block size, the names of the layers, and which of those have an odd number of
inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mudpuppy.errors import shown
from mudpuppy.quant.checks import Form, refuse, require_parts, require_scales
from mudpuppy.quant.codes import PART_MISSING, UNKNOWN_SCHEME, WRONG_FORM, WRONG_SCALES
from mudpuppy.quant.declared import MOST_BLOCK
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.formats.interface import Format, Packed
from mudpuppy.safefile import TensorEntry
from mudpuppy.stored import Reader

OWN_METHOD = "mudpuppy"
"""`quant_method` of our 4-bit checkpoints."""
VERSION = 1
"""Version of our layout; another one is refused."""
TYPE_NAMES = {torch.uint8: "U8", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""Types of parts, as safetensors calls them."""

Entries = Mapping[str, TensorEntry]


@dataclass(frozen=True, kw_only=True)
class StoredLayer(ABC):
    """One layer in 4 bits, in the files of a checkpoint."""

    name: str
    """Its name in the files."""
    where: str
    """Folder and name, for messages."""
    format: Format
    """How levels and scales become values."""
    rows: int
    """Outputs."""
    columns: int
    """Inputs."""
    block_size: int
    """Columns that share a scale, once it is in our layout."""
    parts: Entries
    """Its tensors, by what follows its name."""

    @abstractmethod
    def read(self, reader: Reader, start: int = 0, stop: int | None = None) -> Packed:
        """Return rows `start:stop` in our layout.

        Raises:
            QuantisedModelError: MP-Q04, a scale is one that no writer makes.
        """

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight, (out, in)."""
        return self.rows, self.columns


def forms(form: Format, rows: int, columns: int, block_size: int) -> dict[str, Form]:
    """Return type and shape of every part of a layer in our layout."""
    groups = -(-columns // block_size)
    scale = TYPE_NAMES[form.scale_dtype]
    return {
        "qweight": Form(("U8",), (rows, form.packed_width(columns))),
        "scales": Form((scale,), (rows, groups)),
    }


@dataclass(frozen=True, kw_only=True)
class OwnLayer(StoredLayer):
    """A layer that we wrote."""

    def read(self, reader: Reader, start: int = 0, stop: int | None = None) -> Packed:
        """Return rows `start:stop`."""
        last = self.rows if stop is None else stop
        levels = _rows(reader, self.parts["qweight"], start, last)
        scales = _rows(reader, self.parts["scales"], start, last)
        require_format_scales(self.where, self.format, scales)
        return Packed(levels, scales, self.columns, self.block_size)


def require_format_scales(where: str, form: Format, scales: Tensor) -> None:
    """Refuse scales that are no numbers, or below zero.

    Raises:
        QuantisedModelError: MP-Q04.
    """
    require_scales(where, "scales", form.scale_values(scales))


def require_values(where: str, form: Format, packed: Packed, dtype: torch.dtype) -> None:
    """Refuse a layer whose weights, or the sums of a row of them, are beyond its compute type.

    Raises:
        QuantisedModelError: MP-Q04.
    """
    require_format_scales(where, form, packed.scales)
    if not packed.scales.numel():
        return
    scale = float(form.scale_values(packed.scales).max())
    largest = scale * max(abs(level) for level in form.levels) * packed.in_features
    if largest <= torch.finfo(dtype).max:
        return
    # levels that large need not be there: only now every weight is looked at
    sums = form.dequantise(packed, dtype).abs().sum(dim=1, dtype=torch.float64)
    if bool((sums <= torch.finfo(dtype).max).all()):
        return
    problem = f"scales up to {scale:.4g} give weights whose sums are beyond {str(dtype)[6:]}"
    raise refuse(WRONG_SCALES, where, problem)


def _rows(reader: Reader, entry: TensorEntry, start: int, stop: int) -> Tensor:
    """Return rows of a matrix, which lie together."""
    width = entry.size // entry.shape[0]
    raw = reader.read_bytes(entry, start * width, stop * width)
    kind = {name: dtype for dtype, name in TYPE_NAMES.items()}[entry.dtype]
    return raw.view(kind).view(stop - start, entry.shape[1])


def read_declared(where: str, declared: Mapping[str, Any]) -> tuple[Format, int]:
    """Return format and block size of one of our checkpoints.

    Raises:
        QuantisedModelError: MP-Q01.
    """
    form, block = read_format(where, declared), declared.get("block_size")
    if type(block) is not int or not 1 <= block <= MOST_BLOCK:
        raise refuse(UNKNOWN_SCHEME, where, f"the block size {shown(block)} is none")
    try:
        form.require_block_size(block)
    except ValueError as error:
        raise refuse(UNKNOWN_SCHEME, where, str(error)) from error
    return form, block


def read_format(where: str, declared: Mapping[str, Any]) -> Format:
    """Return the format of one of our checkpoints.

    Raises:
        QuantisedModelError: MP-Q01.
    """
    stated, name = declared.get("version"), declared.get("format")
    if type(stated) is not int or stated != VERSION:
        problem = f"the layout has the version {shown(stated)}, and {VERSION} is read here"
        raise refuse(UNKNOWN_SCHEME, where, problem)
    if not isinstance(name, str) or name not in FORMATS:
        raise refuse(UNKNOWN_SCHEME, where, f"the format {shown(name)} is none of {list(FORMATS)}")
    return FORMATS[name]


def own_layers(
    folder: Path, tensors: Entries, declared: Mapping[str, Any]
) -> dict[str, StoredLayer]:
    """Return every layer that we wrote, checked by headers and tables."""
    form, block = read_declared(f"{folder}/config.json", declared)
    groups = group_parts(tensors, ("qweight", "scales"))
    ends = {_end(name) for name in _read_odd(f"{folder}/config.json", declared)}
    odd = {name for name in groups if _end(name) in ends}
    found: dict[str, StoredLayer] = {}
    for name, parts in groups.items():
        where = f"{folder}: {name}"
        missing = [part for part in ("qweight", "scales") if part not in parts]
        if missing:
            raise refuse(PART_MISSING, where, f"the part {missing[0]} is missing")
        columns = _columns(where, parts, form, name in odd)
        rows = parts["qweight"].shape[0]
        seen = {part: (entry.dtype, entry.shape) for part, entry in parts.items()}
        require_parts(where, seen, forms(form, rows, columns, block))
        found[name] = OwnLayer(
            name=name,
            where=where,
            format=form,
            rows=rows,
            columns=columns,
            block_size=block,
            parts=parts,
        )
    require_declared(str(folder), declared, found)
    return found


def _read_odd(where: str, declared: Mapping[str, Any]) -> list[str]:
    """Return the names of the layers with an odd number of inputs.

    Raises:
        QuantisedModelError: MP-Q01, they are no list of names.
    """
    odd = declared.get("odd")
    if odd is None:
        return []
    if not isinstance(odd, list) or not all(isinstance(name, str) for name in odd):
        raise refuse(UNKNOWN_SCHEME, where, f"odd is no list of layers: {shown(odd)}")
    return odd


def require_declared(where: str, declared: Mapping[str, Any], found: Mapping[str, object]) -> None:
    """Refuse a checkpoint that holds fewer or other layers than it declares.

    Names are compared by their last parts: files and models may call the first ones differently.

    Raises:
        QuantisedModelError: MP-Q01, nothing is listed; MP-Q02, layers are missing or not declared.
    """
    names = declared.get("modules")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise refuse(UNKNOWN_SCHEME, where, f"it lists no modules: {shown(names)}")
    ends = {_end(name) for name in found}
    lost = [name for name in names if _end(name) not in ends]
    if lost:
        problem = f"{len(lost)} declared layers are not packed, such as {lost[0]}"
        raise refuse(PART_MISSING, where, problem)
    said = {_end(name) for name in names}
    more = [name for name in found if _end(name) not in said]
    if more:
        problem = f"{len(more)} packed layers are not declared, such as {more[0]}"
        raise refuse(PART_MISSING, where, problem)


def _end(name: str) -> str:
    """Return the part of a name from the number of its block on: `0.mlp.up_proj`."""
    words = name.split(".")
    first = next((place for place, word in enumerate(words) if word.isdigit()), 0)
    return ".".join(words[first:])


def _columns(where: str, parts: Entries, form: Format, is_odd: bool) -> int:
    """Return the inputs of a layer in our layout; two levels a byte cannot tell an odd number.

    Raises:
        QuantisedModelError: MP-Q03, the levels are no matrix.
    """
    shape = parts["qweight"].shape
    if len(shape) != 2 or not all(shape):
        raise refuse(WRONG_FORM, where, f"qweight has the shape {list(shape)}")
    return form.per_byte * shape[1] - (is_odd and form.per_byte == 2)


def group_parts(tensors: Entries, parts: tuple[str, ...]) -> dict[str, dict[str, TensorEntry]]:
    """Return the tensors whose names end in one of `parts`, by layer and part."""
    found: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in tensors.items():
        part = next((one for one in parts if name.endswith(f".{one}")), None)
        if part is not None:
            found.setdefault(name.removesuffix(f".{part}"), {})[part] = entry
    return found
