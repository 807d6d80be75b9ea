"""Write a planned GGUF file: its head, then tensor after tensor, atomically.

A file has its name only when it is whole and on the disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mudpuppy.errors import EngineError, OutputError
from mudpuppy.export.gguf.blocks import Rows, Source, is_finite, read_blocks, widen
from mudpuppy.export.gguf.direct import DirectFile
from mudpuppy.export.gguf.refusals import ExportRefused
from mudpuppy.export.gguf.tensors import Plan, Planned
from mudpuppy.files import atomic_file

NARROW = "F16"
"""The type that cannot hold every bf16 and fp32."""
AS_STORED = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.uint16): "BF16"}
"""Types in which a block is written as it was read."""


class Quantiser(Protocol):
    """What makes the bytes of a type."""

    @property
    def name(self) -> str:
        """Return what computes."""

    def quantise(self, rows: Rows, kind: str, /) -> Any:
        """Return rows in a type, as something that can be written."""


def write_gguf(
    output: Path,
    plan: Plan,
    types: Mapping[str, str],
    describe: Callable[[Any], None],
    quantiser: Quantiser,
) -> int:
    """Write the file and return its bytes.

    At most a block of a tensor is held, as stored, as fp32 and as written.

    Args:
        output: gets its name when all is written; what was there before stays until then.
        plan: what it holds.
        types: of every tensor, as ggml calls them.
        describe: gives the metadata to the `gguf.GGUFWriter`, whose tensors are known by then.
        quantiser: makes the types that are not stored already.

    Raises:
        ExportRefused: MP-X06, a value is no number, or too large for F16.
        OutputError: there is no room for the file.
        EngineError: the disk is full, or does not take the file for another reason.
    """
    writer = _open_writer(plan, types)
    describe(writer)
    size = sum(info.nbytes for info in writer.tensors[0].values())
    _require_space(output, size)
    source = Source()
    try:
        with atomic_file(output) as path:
            try:
                _write(path, writer, plan, types, quantiser, source)
            finally:
                writer.close()
            return path.stat().st_size
    except OSError as error:
        raise EngineError(
            f"the export cannot go on: {error.strerror or error} (while writing {output})",
            hint="see whether the disk is full (df) or a limit is reached (ulimit -f, quota)",
        ) from error
    finally:
        source.close()


def _open_writer(plan: Plan, types: Mapping[str, str]) -> Any:
    """Return a writer that knows name, shape and type of every tensor, and no value."""
    import gguf

    writer = gguf.GGUFWriter(None, plan.architecture)
    for one in plan.tensors:
        kind = gguf.GGMLQuantizationType[types[one.name]]
        shape = gguf.quant_shape_to_byte_shape(one.shape, kind)
        size = shape[-1] * one.rows
        # the type of the array tells whether the shape is one of bytes; ours is one of values
        writer.add_tensor_info(one.name, one.shape, np.dtype(np.float32), size, raw_dtype=kind)
    return writer


def _require_space(output: Path, size: int) -> None:
    free = shutil.disk_usage(output.parent).free
    if free < size:
        raise OutputError(
            f"{output} needs {_bytes(size)}, and {_bytes(free)} are free there",
            hint="name a file on another disk",
        )


def _bytes(count: int) -> str:
    """Return a size in GB, or in MB where GB would round to nothing."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def _write(
    path: Path,
    writer: Any,
    plan: Plan,
    types: Mapping[str, str],
    quantiser: Quantiser,
    source: Source,
) -> None:
    writer.write_header_to_file(path=path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    head = path.read_bytes()
    with DirectFile(path) as handle:
        handle.write(head)
        for one in plan.tensors:
            _pad(handle, writer.data_alignment)
            start = handle.tell()
            for block in read_blocks(one, source):
                handle.write(_encode(block, one, types[one.name], quantiser))
            if handle.tell() - start != writer.tensors[0][one.name].nbytes:
                raise AssertionError(f"{one.name} has {handle.tell() - start} bytes")
        _pad(handle, writer.data_alignment)


def _pad(handle: DirectFile, alignment: int) -> None:
    handle.write(bytes(-handle.tell() % alignment))


def _encode(block: Rows, one: Planned, kind: str, quantiser: Quantiser) -> Any:
    """Return the bytes of a block in the type of its tensor."""
    if AS_STORED.get(block.dtype) == kind:
        return block
    if kind == "F32":
        return widen(block)
    try:
        made = quantiser.quantise(np.ascontiguousarray(block), kind)
    except EngineError as error:
        raise EngineError(f"the tensor {one.name}: {error.message}", hint=error.hint) from error
    if kind == NARROW and not is_finite(np.frombuffer(made, np.float16), "F16"):
        raise ExportRefused(
            "MP-X06",
            f"the tensor {one.name} holds values beyond 65504, which F16 does not have",
            hint="--quant bf16",
        )
    return made
