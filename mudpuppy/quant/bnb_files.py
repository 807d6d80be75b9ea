"""Layers that bitsandbytes wrote, whole or some rows of them, as our layers: no value changes.

`weight` holds the levels of the *flattened* matrix, the earlier one in the high half of a byte;
`weight.absmax` one scale a block of that row of numbers, so that a block may reach into the next
row; `weight.quant_map` the 16 values; `weight.quant_state.*` shape and block size as JSON in bytes.
With double quantisation absmax are bytes too: `nested_quant_map[byte] * nested_absmax` plus an
offset, in float32. In our layout each scale is repeated for the largest piece of a row that never
crosses a block, gcd(columns, block size).

The definition is that of bitsandbytes' readers (functional.py, backends/default/ops.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mudpuppy.errors import shown
from mudpuppy.quant.checks import Form, refuse, require_parts, require_scales
from mudpuppy.quant.codes import PART_MISSING, UNKNOWN_SCHEME, WRONG_FORM, WRONG_SCALES
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.formats.interface import Format, Packed
from mudpuppy.quant.packed_files import Entries, StoredLayer, group_parts
from mudpuppy.safefile import TensorEntry
from mudpuppy.stored import FLOATS, Reader

BNB_METHOD = "bitsandbytes"
STATE = "weight.quant_state.bitsandbytes__"
BNB_PARTS = (
    *("weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map"),
    *(f"{STATE}nf4", f"{STATE}fp4"),
)
"""What a 4-bit layer of bitsandbytes has beside `weight`."""
MOST_STATE_BYTES = 1 << 16
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Block sizes that bitsandbytes has."""
NESTED_BLOCK = 256
"""Scales that share a nested one, always."""
MOST_OFFSET = 3.4e38
"""About the largest number of float32."""


class Nested(NamedTuple):
    """How scales are quantised themselves."""

    block: int
    """Scales that share a nested one."""
    offset: float
    """What is added to them."""


@dataclass(frozen=True, kw_only=True)
class BnbLayer(StoredLayer):
    """A layer that bitsandbytes wrote."""

    stored_block: int
    """Numbers of the flattened weight that share an absmax."""
    nested: Nested | None
    """How the scales are quantised; None where they are numbers."""

    def read(self, reader: Reader, start: int = 0, stop: int | None = None) -> Packed:
        """Return rows `start:stop` in our layout."""
        last = self.rows if stop is None else stop
        first, end = start * self.columns, last * self.columns
        raw = reader.read_bytes(self.parts["weight"], first // 2, -(-end // 2))
        levels = torch.stack((raw >> 4, raw & 15), dim=1).view(-1)
        levels = levels[first % 2 : first % 2 + end - first].view(-1, self.columns)
        levels = torch.nn.functional.pad(levels, (0, self.columns % 2))
        qweight = levels[:, 0::2] | (levels[:, 1::2] << 4)
        scales = self._absmax(reader, first // self.stored_block, -(-end // self.stored_block))
        pieces = torch.arange(first, end, self.block_size) // self.stored_block
        spread = scales[pieces - first // self.stored_block].view(last - start, -1)
        return Packed(qweight, spread, self.columns, self.block_size)

    def _absmax(self, reader: Reader, first: int, last: int) -> Tensor:
        """Return some scales in float32."""
        entry = self.parts["weight.absmax"]
        item = entry.size // max(1, math.prod(entry.shape))
        raw = reader.read_bytes(entry, first * item, last * item)
        if self.nested is None:
            scales = raw.view(FLOATS[entry.dtype]).float()
            require_scales(self.where, "absmax", scales)
            return scales
        outer = reader.read(self.parts["weight.nested_absmax"]).view(-1)
        table = reader.read(self.parts["weight.nested_quant_map"]).view(-1)
        require_scales(self.where, "nested absmax", outer)
        require_scales(self.where, "values of nested_quant_map", table, signed=True)
        place = torch.arange(first, last) // self.nested.block
        # in this order, each step rounded to float32, as bitsandbytes' readers do
        scales = table[raw.long()] * outer[place] + torch.tensor(self.nested.offset)
        require_scales(self.where, "absmax", scales, signed=True)
        return scales


def bnb_layers(folder: Path, tensors: Entries, reader: Reader) -> dict[str, StoredLayer]:
    """Return every layer that bitsandbytes wrote, checked by headers and tables."""
    found: dict[str, StoredLayer] = {}
    for name, parts in group_parts(tensors, BNB_PARTS).items():
        if f"{name}.weight" in tensors:
            parts["weight"] = tensors[f"{name}.weight"]
        found[name] = _bnb_layer(f"{folder}: {name}", name, parts, reader)
    for name, entry in tensors.items():
        if name.endswith(".weight") and entry.dtype == "U8" and name[:-7] not in found:
            raise refuse(PART_MISSING, f"{folder}: {name[:-7]}", "the levels have no quant_state")
    return found


def _bnb_layer(where: str, name: str, parts: Entries, reader: Reader) -> BnbLayer:
    state_part = next((part for part in parts if part.startswith(STATE)), None)
    if state_part is None:
        raise refuse(PART_MISSING, where, "the part weight.quant_state is missing")
    state = _read_state(where, parts[state_part], reader)
    kind = state_part.removeprefix(STATE)
    if state.get("quant_type") != kind:
        problem = f"quant_state of {kind} names the type {shown(state.get('quant_type'))}"
        raise refuse(UNKNOWN_SCHEME, where, problem)
    (rows, columns), block = state["shape"], state["blocksize"]
    is_nested = "nested_offset" in state or "weight.nested_absmax" in parts
    nested = _read_nested(where, state) if is_nested else None
    seen = {part: (entry.dtype, entry.shape) for part, entry in parts.items()}
    scales = -(-rows * columns // block)
    wanted = {
        "weight": _flat(parts, "weight", -(-rows * columns // 2)),
        "weight.absmax": Form(("U8",) if nested else ("F32", "F16", "BF16"), (scales,)),
        "weight.quant_map": Form(("F32",), (16,)),
    }
    if nested:
        wanted["weight.nested_absmax"] = Form(("F32",), (-(-scales // nested.block),))
        wanted["weight.nested_quant_map"] = Form(("F32",), (256,))
    require_parts(where, seen, wanted)
    form = FORMATS[f"bnb-{kind}"]
    _require_table(where, reader.read(parts["weight.quant_map"]), form)
    return BnbLayer(
        name=name,
        where=where,
        format=form,
        rows=rows,
        columns=columns,
        block_size=math.gcd(columns, block),
        parts=parts,
        stored_block=block,
        nested=nested,
    )


def _read_nested(where: str, state: Mapping[str, Any]) -> Nested:
    """Return how the scales themselves are quantised.

    Raises:
        QuantisedModelError: MP-Q03 or MP-Q04, it is not said.
    """
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if type(block) is not int or block != NESTED_BLOCK:
        problem = f"the nested block size {shown(block)} is none: it is always {NESTED_BLOCK}"
        raise refuse(WRONG_FORM, where, problem)
    is_number = isinstance(offset, int | float) and not isinstance(offset, bool)
    # compared before anything else: an int may be too large for a float
    if offset is None or not is_number or not abs(offset) <= MOST_OFFSET:
        raise refuse(WRONG_SCALES, where, f"the nested offset {shown(offset)} is no number")
    return Nested(block, float(offset))


def _flat(parts: Entries, part: str, size: int) -> Form:
    """Return the form of levels, which may lie in numbers of any type: only their bytes count."""
    entry = parts.get(part)
    if entry is None or entry.size != size:
        return Form(("U8",), (size, 1))
    return Form((entry.dtype,), entry.shape)


def _require_table(where: str, table: Tensor, form: Format) -> None:
    expected = torch.tensor(form.levels)
    if not torch.equal(table.view(-1), expected):
        place = int((table.view(-1) - expected).nan_to_num(nan=9).abs().argmax())
        problem = f"quant_map says {float(table.view(-1)[place]):.6g} for level {place}"
        raise refuse(
            UNKNOWN_SCHEME, where, f"{problem}, and {form.name} has {form.levels[place]:.6g}"
        )


def _read_state(where: str, entry: TensorEntry, reader: Reader) -> dict[str, Any]:
    """Return the state of a layer of bitsandbytes.

    Raises:
        QuantisedModelError: MP-Q03, it is damaged.
    """
    if entry.dtype != "U8" or entry.size > MOST_STATE_BYTES:
        raise refuse(WRONG_FORM, where, f"quant_state is {entry.dtype} of {entry.size:,} bytes")
    try:
        state = json.loads(bytes(reader.read_bytes(entry, 0, entry.size).tolist()))
    except (ValueError, RecursionError) as error:
        raise refuse(WRONG_FORM, where, f"quant_state is no JSON: {error}"[:200]) from error
    shape = state.get("shape") if isinstance(state, dict) else None
    block = state.get("blocksize") if isinstance(state, dict) else None
    sizes = shape if isinstance(shape, list) and len(shape) == 2 else [0]
    if not all(type(size) is int and 0 < size < 1 << 31 for size in sizes):
        raise refuse(WRONG_FORM, where, f"quant_state names the shape {shown(shape)}")
    if type(block) is not int or block not in BLOCK_SIZES:
        problem = f"quant_state names the block size {shown(block)}, none of {list(BLOCK_SIZES)}"
        raise refuse(WRONG_FORM, where, problem)
    return dict(state)
