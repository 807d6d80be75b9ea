"""Read GGUF headers from untrusted files: no count is believed, nothing beyond the header is read.

The form: `GGUF`, version, number of tensors, number of settings; the settings; the tensors' names,
shapes, types and offsets; from the next multiple of the alignment on, the values.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from harness.evidence.files.headers import LARGEST, LFS_MARK
from harness.evidence.files.kinds import GGUF_MARK
from harness.facts.checkpoint import Tensor
from harness.facts.gguf import GgufArray, GgufHeader

VERSIONS = (2, 3)
"""Versions of the format that are in use; 1 was so for a few weeks in 2023."""
READ_LIMIT_BYTES = 64_000_000
"""Longest header that is read; a vocabulary of 262,144 tokens takes some 10 MB."""
STRING_LIMIT = 2_000_000
"""Texts in arrays that are kept or walked over; the largest vocabularies have 600,000 merges."""
TEXT_LIMIT_BYTES = 4_000_000
"""Longest single text."""
SETTINGS_LIMIT, TENSOR_LIMIT = 10_000, 200_000
KEPT = 4_096
"""Elements of an array that are kept whatever it is."""
NEEDED = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")
"""Arrays that are kept whole."""
DEPTH = 4
"""Arrays in arrays that are followed."""
NUMBERS = {
    0: ("uint8", "<B"),
    1: ("int8", "<b"),
    2: ("uint16", "<H"),
    3: ("int16", "<h"),
    4: ("uint32", "<I"),
    5: ("int32", "<i"),
    6: ("float32", "<f"),
    7: ("bool", "<B"),
    10: ("uint64", "<Q"),
    11: ("int64", "<q"),
    12: ("float64", "<d"),
}
"""Types of settings that hold one number, and how it is stored."""
STRING, ARRAY = 8, 9
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""Types of tensors: name, elements of a block, bytes of a block (ggml.h)."""
TYPE_LIMIT = 128
"""Types that a newer ggml may have added; a number beyond is no type."""
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32


class BadGguf(ValueError):
    """A header that does not follow the format; the message says where."""


class _Cut(ValueError):
    """The file ends inside the header."""

    def __init__(self, missing: int) -> None:
        super().__init__("the file ends inside its header")
        self.missing = missing


class _Huge(ValueError):
    """The header is longer than what is read here."""


class _Stream:
    """The header of a file, handed out piece by piece and never beyond its end."""

    def __init__(self, handle: IO[bytes], size: int) -> None:
        self._handle = handle
        self._size = size
        self.place = 0
        self.strings = 0

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if self.place + count > self._size:
            raise _Cut(self.place + count - self._size)
        self.place += count
        if self.place > READ_LIMIT_BYTES:
            raise _Huge(f"a header of more than the {READ_LIMIT_BYTES:,} bytes that are read here")
        found = self._handle.read(count)
        if len(found) != count:
            raise _Cut(count - len(found))
        return found

    def number(self, form: str) -> Any:
        """Return the next number."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, what: str) -> str:
        """Return the next text."""
        length = self.number("<Q")
        if length > TEXT_LIMIT_BYTES:
            raise BadGguf(f"{what} claims to be {length:,} bytes long")
        return self.take(length).decode("utf-8", "replace")


def read_gguf_header(path: Path, name: str) -> tuple[GgufHeader, int]:
    """Return the header of a file and the size of the file; what is wrong is part of the header."""
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=1 << 18) as handle:
            return _read(handle, size, name), size
    except OSError as problem:
        detail = problem.strerror or type(problem).__name__
        return GgufHeader(problem="unreadable", detail=detail), 0


def _read(handle: IO[bytes], size: int, name: str) -> GgufHeader:
    if size == 0:
        return GgufHeader(problem="empty", detail="0 bytes")
    stream = _Stream(handle, size)
    version = 0
    settings: dict[str, Any] = {}
    try:
        version = _read_version(stream, handle)
        if version not in VERSIONS:
            return GgufHeader(version=version, problem="unsupported", detail=_old(version))
        count, pairs = stream.number("<Q"), stream.number("<Q")
        settings = _read_settings(stream, pairs)
        infos = _read_infos(stream, count)
        tensors = _place(infos, stream.place, settings, name)
        end = _check_layout(tensors, size)
    except _Cut as cut:
        kind, detail, missing = "truncated", str(cut), cut.missing
    except _Huge as huge:
        kind, detail, missing = "huge-header", str(huge), 0
    except BadGguf as problem:
        kind, detail, missing = "bad-header", str(problem)[:300], 0
    else:
        return _conclude(version, settings, tensors, end, size)
    # The settings that were read before the problem say what kind of model this was.
    return GgufHeader(
        version=version, settings=settings, problem=kind, detail=detail, missing_bytes=missing
    )


def _conclude(
    version: int, settings: dict[str, Any], tensors: tuple[Tensor, ...], end: int, size: int
) -> GgufHeader:
    if not tensors:
        return GgufHeader(
            version=version,
            settings=settings,
            problem="unsupported",
            detail="it holds no tensor: a vocabulary, or settings alone",
        )
    short = end > size
    return GgufHeader(
        version=version,
        settings=settings,
        tensors=tensors,
        problem="truncated" if short else "",
        detail=f"{size:,} bytes on disk, {end:,} promised by the header" if short else "",
        missing_bytes=max(0, end - size),
    )


def _read_version(stream: _Stream, handle: IO[bytes]) -> int:
    """Return the version; a big-endian file's is above 65,535."""
    head = stream.take(min(len(LFS_MARK), 4))
    if head != GGUF_MARK:
        if head + handle.read(len(LFS_MARK) - 4) == LFS_MARK:
            raise BadGguf("git-LFS pointer text in place of the file: git lfs pull")
        raise BadGguf(f"it starts with {head!r}, not with {GGUF_MARK!r}")
    return int(stream.number("<I"))


def _old(version: int) -> str:
    if version >= 1 << 16:
        return "big-endian, for other machines; this tool reads little-endian files"
    return f"version {version} of the format; 2 and 3 are read here"


def _read_settings(stream: _Stream, count: int) -> dict[str, Any]:
    if count > SETTINGS_LIMIT:
        raise BadGguf(f"it claims {count:,} settings")
    found: dict[str, Any] = {}
    for _ in range(count):
        key = stream.text("the name of a setting")
        if key in found:
            raise BadGguf(f"it names '{key[:100]}' twice")
        found[key] = _read_value(stream, stream.number("<I"), key)
    return found


def _read_value(stream: _Stream, kind: int, key: str) -> Any:
    if kind == STRING:
        return stream.text(f"'{key[:100]}'")
    if kind == ARRAY:
        return _read_array(stream, key, 0)
    if kind not in NUMBERS:
        raise BadGguf(f"'{key[:100]}' has the unknown type {kind}")
    name, form = NUMBERS[kind]
    value = stream.number(form)
    return bool(value) if name == "bool" else value


def _read_array(stream: _Stream, key: str, depth: int) -> GgufArray:
    kind, length = stream.number("<I"), stream.number("<Q")
    if kind in NUMBERS:
        name, form = NUMBERS[kind]
        width = struct.calcsize(form)
        if length * width > READ_LIMIT_BYTES:
            raise BadGguf(f"'{key[:100]}' claims {length:,} elements")
        raw = stream.take(length * width)
        kept = length <= KEPT or (key in NEEDED and length <= STRING_LIMIT)
        values = struct.unpack(f"<{length}{form[1]}", raw) if kept else ()
        return GgufArray(kind=name, length=length, values=values)
    if kind not in (STRING, ARRAY):
        raise BadGguf(f"'{key[:100]}' holds elements of the unknown type {kind}")
    stream.strings += length
    if stream.strings > STRING_LIMIT:
        raise BadGguf(f"'{key[:100]}' claims {length:,} elements")
    if kind == ARRAY:
        if depth >= DEPTH:
            raise BadGguf(f"'{key[:100]}' holds arrays in arrays in arrays")
        parts = tuple(_read_array(stream, key, depth + 1) for _ in range(length))
        return GgufArray(kind="array", length=length, values=parts if length <= KEPT else ())
    return GgufArray(kind="string", length=length, values=_read_texts(stream, key, length))


def _read_texts(stream: _Stream, key: str, length: int) -> tuple[str, ...]:
    """Return texts, or none of them where there are many and nothing needs them."""
    what = f"a text of '{key[:100]}'"
    if length <= KEPT or key in NEEDED:
        return tuple(stream.text(what) for _ in range(length))
    number: Callable[[str], Any] = stream.number
    for _ in range(length):
        size = number("<Q")
        if size > TEXT_LIMIT_BYTES:
            raise BadGguf(f"{what} claims to be {size:,} bytes long")
        stream.take(size)
    return ()


Info = tuple[str, tuple[int, ...], int, int]
"""Name, sizes (columns first), type and offset of a tensor."""


def _read_infos(stream: _Stream, count: int) -> list[Info]:
    if count > TENSOR_LIMIT:
        raise BadGguf(f"it claims {count:,} tensors")
    found: dict[str, Info] = {}
    for _ in range(count):
        name = stream.text("the name of a tensor")
        dimensions = stream.number("<I")
        if dimensions > 8:
            raise BadGguf(f"'{name[:100]}' claims {dimensions} dimensions")
        sizes = tuple(stream.number("<Q") for _ in range(dimensions))
        if any(size >= 2**53 for size in sizes):
            raise BadGguf(f"'{name[:100]}' has the shape {list(sizes)}")
        if name in found:
            raise BadGguf(f"it names the tensor '{name[:100]}' twice")
        found[name] = (name, sizes, stream.number("<I"), stream.number("<Q"))
    return list(found.values())


def _place(
    infos: list[Info], header_end: int, settings: dict[str, Any], file: str
) -> tuple[Tensor, ...]:
    """Return the tensors with the bytes that they take."""
    alignment = settings.get(ALIGNMENT, DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise BadGguf(f"{ALIGNMENT} is {str(alignment)[:40]}, not a power of two")
    start = -(-header_end // alignment) * alignment
    following = {a[3]: b[3] for a, b in _neighbours(infos)}
    made = []
    for name, sizes, kind, offset in infos:
        if offset % alignment:
            raise BadGguf(f"'{name[:100]}' starts at {offset}, no multiple of {alignment}")
        dtype, length = _length(name, sizes, kind)
        if length is None:  # a type of a newer ggml: it ends where the next one starts, at most
            length = following.get(offset, offset) - offset
        if offset + length > LARGEST:
            raise BadGguf(f"'{name[:100]}' {dtype} {list(sizes)} is larger than any file")
        begin = start + offset
        shape = tuple(reversed(sizes))
        made.append(
            Tensor(name=name, dtype=dtype, shape=shape, start=begin, end=begin + length, file=file)
        )
    return tuple(made)


def _neighbours(infos: list[Info]) -> list[tuple[Info, Info]]:
    ordered = sorted(infos, key=lambda info: info[3])
    return list(itertools.pairwise(ordered))


def _length(name: str, sizes: tuple[int, ...], kind: int) -> tuple[str, int | None]:
    """Return the name of a type and the bytes of a tensor; None for a type that is not known."""
    if kind not in TYPES:
        if kind >= TYPE_LIMIT:
            raise BadGguf(f"'{name[:100]}' has the unknown type {kind}")
        return f"GGML_{kind}", None
    dtype, block, size = TYPES[kind]
    elements = 1
    for one in sizes:
        elements *= one
    if elements and sizes and sizes[0] % block:
        raise BadGguf(f"'{name[:100]}' {dtype} has rows of {sizes[0]}, no multiple of {block}")
    return dtype, elements // block * size


def _check_layout(tensors: tuple[Tensor, ...], size: int) -> int:
    """Return where the last tensor ends.

    Raises:
        BadGguf: tensors overlap. Holes are allowed: they are how tensors are aligned.
    """
    position = 0
    for tensor in sorted(tensors, key=lambda t: (t.start, t.end)):
        if tensor.start < position and tensor.end > tensor.start:
            raise BadGguf(f"'{tensor.name[:100]}' overlaps the tensor before it")
        position = max(position, tensor.end)
    return position
