"""Headers of safetensors files: read, checked, and written. Standard library only.

Nothing is mapped and no tensor is read. A checkpoint of a stranger may say anything: sizes, offsets
and file names are checked before they are used.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit for a header."""
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Bytes of one element, for every type of whole bytes."""

MADE_FOR_TORCH = {"format": "pt"}
"""What transformers wants the metadata of a file to say."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies."""

    name: str
    """Its name in the file."""
    file: Path
    """The file."""
    dtype: str
    """Its type as the format calls it, such as BF16."""
    shape: tuple[int, ...]
    """Its shape."""
    start: int
    """First byte in the file."""
    size: int
    """Bytes."""


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Return every tensor of one file, in the order of their bytes.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not follow the format; the message says where.
    """
    with file.open("rb") as handle:
        total = file.stat().st_size
        size = int.from_bytes(handle.read(8), "little")
        if not 0 < size <= min(MAX_HEADER_BYTES, total - 8):
            raise ValueError(f"{file}: not a safetensors file (header of {size} bytes)")
        raw = handle.read(size)
    try:
        header = json.loads(raw)
        found = [
            _entry(file, name, described, 8 + size, total)
            for name, described in header.items()
            if name != "__metadata__"
        ]
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"{file}: the header is damaged: {error}") from error
    found.sort(key=lambda entry: (entry.start, entry.size))
    for before, after in itertools.pairwise(found):
        if before.start + before.size > after.start:
            raise ValueError(f"{file}: the tensors {before.name} and {after.name} overlap")
    return {entry.name: entry for entry in found}


def _entry(file: Path, name: str, described: Any, data: int, total: int) -> TensorEntry:
    """Return one entry of a header, checked.

    Raises:
        ValueError: type, shape and offsets contradict each other or leave the file.
    """
    start, stop = described["data_offsets"]
    dtype, shape = described["dtype"], tuple(described["shape"])
    numbers = (start, stop, *shape)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"the tensor {name} has a shape or an offset that is no whole number")
    if not start <= stop <= total - data:
        raise ValueError(f"the tensor {name} leaves the file")
    if dtype in ITEM_BYTES and math.prod(shape) * ITEM_BYTES[dtype] != stop - start:
        raise ValueError(f"the tensor {name} has {stop - start} bytes, which is not its shape")
    return TensorEntry(name, file, dtype, shape, data + start, stop - start)


def pack_header(
    tensors: Iterable[tuple[str, str, Sequence[int], int]],
    metadata: Mapping[str, object] | None = MADE_FOR_TORCH,
) -> bytes:
    """Return the beginning of a file, before the bytes of its tensors.

    Args:
        tensors: name, type as the format calls it, shape and bytes of each, in their order.
        metadata: what the header says besides; None for no such entry.
    """
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, dtype, shape, size in tensors:
        span = [position, position + size]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": span}
        position += size
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def weight_files(folder: Path) -> list[Path]:
    """Return the weights files that transformers would load; an empty list where there are none.

    Raises:
        OSError: the index cannot be read.
        ValueError: the index is damaged, or names a file that is not beside it.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    return [folder / name for name in sorted(set(read_index(index).values()))]


def read_index(index: Path) -> dict[str, str]:
    """Return the file name of every tensor.

    Raises:
        OSError: the index cannot be read.
        ValueError: it is damaged, or a name leaves the folder.
    """
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        pairs = {str(tensor): str(name) for tensor, name in names.items()}
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"{index}: damaged: {error}") from error
    for name in pairs.values():
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise ValueError(f"{index}: the file name {name[:80]!r} leaves the folder")
    return pairs


def checkpoint_tensors(folder: Path) -> dict[str, TensorEntry]:
    """Return every tensor of a model folder, file by file and in the order of their bytes.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is damaged, or index and files disagree.
    """
    found: dict[str, TensorEntry] = {}
    for file in weight_files(folder):
        for name, entry in read_header(file).items():
            if name in found:
                raise ValueError(f"{folder}: the tensor {name} is in two files")
            found[name] = entry
    index = folder / INDEX_FILE
    if found and not (folder / SINGLE_FILE).is_file():
        listed = read_index(index)
        wrong = [n for n in sorted(listed) if n not in found or found[n].file.name != listed[n]]
        if wrong:
            raise ValueError(f"{index}: the tensor {wrong[0]} is not in {listed[wrong[0]]}")
    return found


def same_bytes(one: TensorEntry, other: TensorEntry, block: int = 1 << 22) -> bool:
    """Return whether two tensors are equal bit for bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as left, other.file.open("rb") as right:
        left.seek(one.start)
        right.seek(other.start)
        todo = one.size
        while todo > 0:
            size = min(block, todo)
            if left.read(size) != right.read(size):
                return False
            todo -= size
    return True
