"""Read a GPTQ checkpoint, of this or another tool, without any other package: checked, then dense.

Both versions of the layout, 2, 3, 4 and 8 bits, groups of neighbours and of any other order
(`desc_act`), symmetric and not. What does not fit what is declared is refused before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from mudpuppy.errors import ModelError, shown
from mudpuppy.quant.checks import Form, refuse, require_groups, require_parts, require_scales
from mudpuppy.quant.codes import PART_MISSING, UNKNOWN_SCHEME, WRONG_FORM, WRONG_USE
from mudpuppy.quant.declared import exchange, find_declared, read_folder, read_settings
from mudpuppy.quant.gptq_pack import PACKED_BITS, GptqTensors, dequantise_gptq
from mudpuppy.safefile import TensorEntry, checkpoint_tensors

METHOD = "gptq"
"""`quant_method` of such a checkpoint."""
STORED_LESS = {"gptq": 1, "gptq_v2": 0}
"""By how much zeros are stored less than they are, by `checkpoint_format`."""
PARTS = GptqTensors._fields
FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True, kw_only=True)
class GptqFormat:
    """What a checkpoint declares of its layers."""

    bits: int
    """Width of a level."""
    group_size: int
    """Inputs of a group; -1 for all."""
    stored_less: int
    """By how much zeros are stored less than they are."""
    varies: bool
    """Whether some layers have other bits or groups (`dynamic`): their shapes say which."""


@dataclass(frozen=True)
class GptqCheckpoint:
    """The files of a checkpoint whose headers fit what it declares."""

    folder: Path
    """Where it is."""
    form: GptqFormat
    """What it declares."""
    tensors: Mapping[str, TensorEntry]
    """Every tensor."""
    layers: Mapping[str, int]
    """Bits of every packed layer, by name."""

    def read_layer(self, name: str) -> GptqTensors:
        """Return a packed layer, its values checked.

        Raises:
            ModelError: scales (MP-Q04) or groups (MP-Q05) are damaged.
        """
        parts = GptqTensors(*(self.read(f"{name}.{part}") for part in PARTS))
        where = f"{self.folder}: {name}"
        require_scales(where, "scales", parts.scales)
        size = self.form.group_size
        declared = None if size == -1 or self.form.varies else size
        require_groups(where, parts.g_idx, parts.scales.shape[0], declared)
        return parts

    def read(self, name: str) -> Tensor:
        """Return a tensor as it is stored."""
        with safe_open(self.tensors[name].file, framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
        return tensor

    def dense_state(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield name and values of every tensor, packed layers as their weight in `dtype`."""
        packed = {f"{name}.{part}" for name in self.layers for part in PARTS}
        for name in self.tensors:
            if name not in packed:
                yield name, self.read(name)
        for name, bits in self.layers.items():
            tensors = self.read_layer(name)
            weight = dequantise_gptq(tensors, bits, dtype, stored_less=self.form.stored_less)
            yield f"{name}.weight", weight


def open_gptq(folder: Path) -> GptqCheckpoint:
    """Open a GPTQ checkpoint and hold the headers of its files against what it declares.

    Raises:
        ModelError: the folder is none, or one of another kind (MP-Q01); a part is missing
            (MP-Q02), or has another type or shape than bits and group size ask for (MP-Q03).
    """
    form = _read_format(folder)
    try:
        tensors = checkpoint_tensors(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} cannot be read: {error}") from error
    suffix = ".qweight"
    names = [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]
    if not names:
        raise refuse(PART_MISSING, str(folder), "no layer is packed (there is no qweight)")
    layers = {name: _check_layer(folder, name, tensors, form) for name in names}
    known = {f"{name}.{part}" for name in layers for part in PARTS}
    for name in tensors:
        if name.rpartition(".")[2] in PARTS and name not in known:
            raise refuse(PART_MISSING, f"{folder}: {name}", "the layer's qweight is missing")
    return GptqCheckpoint(folder, form, tensors, layers)


def load_gptq(folder: Path, dtype: torch.dtype) -> Any:
    """Load a GPTQ checkpoint as a plain model with dequantised weights.

    Args:
        folder: a checkpoint in version 1 or 2 of the layout, of this or another tool.
        dtype: dtype of the model. In the dtype that was quantised, the logits are bit-identical.

    Raises:
        ModelError: the folder is not such a checkpoint, or is damaged; with a code.
    """
    checkpoint = open_gptq(folder)
    config = AutoConfig.from_pretrained(folder)
    exchange(config, None)  # transformers would look for a package that reads it
    state = dict(checkpoint.dense_state(dtype))
    kind = getattr(transformers, config.architectures[0])
    model, report = kind.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    if missing:
        problem = f"{len(missing)} tensors are not in the files, such as {missing[0]}"
        raise refuse(PART_MISSING, str(folder), problem)
    return model


def refuse_as_base(folder: Path) -> None:
    """Refuse a folder of GPTQ where a model with whole weights is needed; others pass.

    Raises:
        ModelError: it is damaged (MP-Q01 to MP-Q05), or in order and of no use here (MP-Q06).
    """
    if read_folder(folder).get("quant_method") != METHOD:
        return
    checkpoint = open_gptq(folder)
    for name in checkpoint.layers:
        checkpoint.read_layer(name)
    problem = "the weights are quantised with GPTQ; name the model that it was made from"
    raise refuse(WRONG_USE, str(folder), problem)


def _read_format(folder: Path) -> GptqFormat:
    """Return what a checkpoint declares.

    Raises:
        ModelError: config.json cannot be read; or MP-Q01, it declares something else.
    """
    found = find_declared(folder, read_settings(folder))
    where = f"{folder}/config.json"
    method, layout = found.get("quant_method"), found.get("checkpoint_format", "gptq")
    bits, size = found.get("bits"), found.get("group_size", -1)
    is_known = isinstance(layout, str) and layout in STORED_LESS
    if method != METHOD or not is_known or type(bits) is not int or bits not in PACKED_BITS:
        raise refuse(
            UNKNOWN_SCHEME,
            where,
            f"expected quant_method gptq, checkpoint_format {' or '.join(STORED_LESS)} and bits "
            f"in {PACKED_BITS}, found {shown(method)}, {shown(layout)} and {shown(bits)}",
        )
    words = found.get("pack_dtype", "int32")
    if words != "int32" or type(size) is not int or size < -1 or size == 0:
        problem = f"pack_dtype {shown(words)}, group_size {shown(size)}"
        raise refuse(UNKNOWN_SCHEME, where, f"expected int32 and -1 or more, found {problem}")
    overrides = found.get("dynamic") or {}
    if not isinstance(overrides, dict):
        raise refuse(UNKNOWN_SCHEME, where, f"dynamic is no object: {shown(overrides)}")
    return GptqFormat(
        bits=bits,
        group_size=size,
        stored_less=STORED_LESS[layout],
        varies=any(overrides.values()),
    )


def _check_layer(
    folder: Path, name: str, tensors: Mapping[str, TensorEntry], form: GptqFormat
) -> int:
    """Return the bits of a layer whose headers fit them."""
    where = f"{folder}: {name}"
    entries = {part: tensors[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in tensors}
    found = {part: (entry.dtype, entry.shape) for part, entry in entries.items()}
    for part in PARTS:
        if part not in found:
            raise refuse(PART_MISSING, where, f"the part {part} is missing")
        rank = 1 if part == "g_idx" else 2
        if len(found[part][1]) != rank or 0 in found[part][1]:
            problem = f"{part} has the shape {list(found[part][1])}"
            raise refuse(WRONG_FORM, where, problem)
    words, outputs = found["qweight"][1]
    bits = form.bits
    if form.varies:
        bits = found["qzeros"][1][1] * 32 // outputs
        if bits not in PACKED_BITS:
            raise refuse(WRONG_FORM, where, f"qzeros of the shape {list(found['qzeros'][1])}")
    inputs = words * 32 // bits
    size = form.group_size if form.group_size != -1 else inputs
    groups = found["scales"][1][0] if form.varies else -(-inputs // size)
    wanted = {
        "qweight": Form(("I32",), (inputs * bits // 32, outputs)),
        "qzeros": Form(("I32",), (groups, outputs * bits // 32)),
        "scales": Form(FLOATS, (groups, outputs)),
        "g_idx": Form(("I32", "I64"), (inputs,)),
    }
    require_parts(where, found, wanted)
    return bits
