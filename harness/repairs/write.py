"""Write a repaired copy: a folder that is there whole, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from harness.evidence.files.headers import BITS
from harness.evidence.files.jsonfile import parse_object
from harness.facts.checkpoint import Tensor
from harness.repairs.draft import Converted, Draft, NotCertain, Renamed
from harness.repairs.torch_archive import TorchArchive
from mudpuppy.errors import OutputError
from mudpuppy.files import open_regular
from mudpuppy.safefile import pack_header

CHUNK_BYTES = 1 << 22
"""Bytes copied at once."""
SPARE_BYTES = 64 << 20
"""Room that is left free on the disk."""


def require_room(target: Path, num_bytes: int) -> None:
    """Refuse before anything is written where the disk has too little room.

    Raises:
        OutputError: it has.
    """
    free = shutil.disk_usage(_existing(target)).free
    if free < num_bytes + SPARE_BYTES:
        raise OutputError(
            f"{target}: the copy needs {num_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            hint="name a folder on another disk with --fix-to DIR",
        )


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def write_draft(draft: Draft, target: Path) -> None:
    """Write every file of a draft into a new folder.

    Raises:
        OSError: it cannot be written.
        NotCertain: a file is not what it was when the draft was made.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in draft.names:
        content = draft.contents.get(name)
        path = target / name
        if isinstance(content, dict):
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            _write(path, lambda out, text=text: _put(out, [text.encode()]))  # type: ignore[misc]
        elif isinstance(content, Renamed):
            _rename_into(draft, name, content, path)
        elif isinstance(content, Converted):
            _convert_into(draft.folder / content.source, path)
        else:
            _copy_into(draft.folder / name, path)


def _write(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    with path.open("xb") as out:
        fill(out)


def _put(out: BinaryIO, parts: Iterable[bytes]) -> None:
    for part in parts:
        out.write(part)


def _copy_into(source: Path, path: Path) -> None:
    with open_regular(source) as handle:
        _write(path, lambda out: shutil.copyfileobj(handle, out, CHUNK_BYTES))


def _rename_into(draft: Draft, name: str, content: Renamed, path: Path) -> None:
    """Copy the data of a safetensors file behind a header with other names."""
    whole = draft.read_weights(name)
    kept = [tensor for tensor in whole.tensors if tensor.name in content.names]
    kept.sort(key=lambda tensor: tensor.start)
    with open_regular(draft.folder / name) as handle:
        length = int.from_bytes(handle.read(8), "little")
        metadata = parse_object(handle.read(length))[0].get("__metadata__")
        header = pack_header(
            [(content.names[one.name], one.dtype, one.shape, _num_bytes(one)) for one in kept],
            metadata if isinstance(metadata, dict) else None,
        )
        ranges = [(one.start, one.end - one.start) for one in kept]
        _write(path, lambda out: _put(out, _chain(header, _read_ranges(handle, ranges))))


def _convert_into(source: Path, path: Path) -> None:
    with closing(TorchArchive(source)) as archive:
        tensors = archive.tensors
        header = pack_header((one.name, one.dtype, one.shape, one.num_bytes) for one in tensors)
        values = (part for tensor in tensors for part in archive.read(tensor))
        _write(path, lambda out: _put(out, _chain(header, values)))


def _num_bytes(tensor: Tensor) -> int:
    return tensor.elements * BITS[tensor.dtype] // 8


def _chain(header: bytes, values: Iterator[bytes]) -> Iterator[bytes]:
    yield header
    yield from values


def _read_ranges(handle: BinaryIO, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    for start, length in ranges:
        handle.seek(start)
        while length:
            raw = handle.read(min(length, CHUNK_BYTES))
            if not raw:
                raise NotCertain("a weights file became shorter while it was copied")
            length -= len(raw)
            yield raw
