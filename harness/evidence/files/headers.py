"""Read safetensors headers from untrusted files: bounded, never mapped, never more than the header.

The rules are those of the format: an 8-byte little-endian length, a JSON object of at most 100 MB,
offsets that cover the rest of the file without holes or overlaps, sizes that follow from shapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.evidence.files.jsonfile import UnreadableJson, parse_object
from harness.facts.checkpoint import Tensor, WeightFile
from mudpuppy.files import open_regular

HEADER_LIMIT_BYTES = 100_000_000
"""Longest header that the format allows."""
READ_LIMIT_BYTES = 32_000_000
"""Longest header that is read; parsed, it takes some twenty times as much memory. The largest
public ones have 10 MB."""
ALL_HEADERS_BYTES = 48_000_000
"""Bytes of headers that are read of one folder."""
MOST_TENSORS = 250_000
"""Tensors that are read of one folder. A model of 61 layers with 384 experts, each of nine packed
tensors, has 207,000 in 30 MB of headers; four times as many take a GB of memory."""
LARGEST = 2**63
"""More bytes than a file can have."""
LFS_MARK = b"version https://git-lfs"
"""How a git-LFS pointer file starts."""

BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits per element of every type of the format."""


class BadHeader(ValueError):
    """A header that does not follow the format; the message says where."""


class HeaderBudget:
    """What may still be read of the headers of one folder."""

    def __init__(self) -> None:
        self.bytes_left = ALL_HEADERS_BYTES
        self.tensors_left = MOST_TENSORS

    def refuse_length(self, length: int) -> str:
        """Return why a header of so many bytes is not read; empty where it is, and count it."""
        if length > READ_LIMIT_BYTES:
            return f"a header of {length:,} bytes; at most {READ_LIMIT_BYTES:,} are read here"
        if length > self.bytes_left:
            return f"headers of more than {ALL_HEADERS_BYTES:,} bytes in one folder"
        self.bytes_left -= length
        return ""

    def refuse_text(self, raw: bytes) -> str:
        """Return why a header is not parsed; empty where it is, and count its tensors."""
        count = raw.count(b"{") - 1  # every entry is an object, whatever it says
        if count > self.tensors_left:
            return f"more than {MOST_TENSORS:,} tensors in one folder, which are not read here"
        self.tensors_left -= count
        return ""


def read_weight_file(path: Path, name: str, budget: HeaderBudget | None = None) -> WeightFile:
    """Describe one safetensors file; what is wrong with it is part of the description.

    Args:
        path: the file.
        name: how it is called in the description.
        budget: shared by the files of a folder; a fresh one where it is None.
    """
    budget = budget or HeaderBudget()
    try:
        size = path.stat().st_size
        with open_regular(path) as handle:
            head = handle.read(max(8, len(LFS_MARK)))
            if size == 0:
                return _refuse(name, 0, "empty", "0 bytes")
            if head.startswith(LFS_MARK):
                return _refuse(name, size, "lfs-pointer", f"{size} bytes of git-LFS pointer text")
            if size < 8:
                return _refuse(name, size, "bad-header", f"{size} bytes, too short for a header")
            length = int.from_bytes(head[:8], "little")
            if length > HEADER_LIMIT_BYTES or length < 2:
                detail = f"the header claims {length:,} bytes; the format allows 2 to 100,000,000"
                return _refuse(name, size, "bad-header", detail)
            if 8 + length > size:
                return _cut_in_header(name, size, length, head[8:9])
            if detail := budget.refuse_length(length):
                return _refuse(name, size, "huge-header", detail)
            handle.seek(8)
            raw = handle.read(length)
            if detail := budget.refuse_text(raw):
                return _refuse(name, size, "huge-header", detail)
    except OSError as problem:
        return _refuse(name, 0, "unreadable", problem.strerror or type(problem).__name__)
    return _describe(name, size, raw)


def _refuse(name: str, size: int, problem: str, detail: str) -> WeightFile:
    return WeightFile(name=name, size_bytes=size, problem=problem, detail=detail)


def _cut_in_header(name: str, size: int, length: int, first: bytes) -> WeightFile:
    missing = 8 + length - size
    detail = f"a header of {length:,} bytes in a file of {size:,}"
    problem = "truncated" if first == b"{" else "bad-header"
    return WeightFile(
        name=name, size_bytes=size, problem=problem, detail=detail, missing_bytes=missing
    )


def _describe(name: str, size: int, raw: bytes) -> WeightFile:
    """Check a whole header against the size of its file."""
    data_start = 8 + len(raw)
    try:
        entries, twice = parse_object(raw)
        if twice:
            raise BadHeader(
                f"it names '{twice[0][:200]}' twice, and readers differ in which counts"
            )
        entries.pop("__metadata__", None)
        # Each entry goes when its tensor is made: all of both would not fit the room together.
        tensors = [_tensor(key, entries.pop(key), data_start, name) for key in list(entries)]
        end = _check_layout(tensors, data_start)
    except (UnreadableJson, BadHeader) as problem:
        return _refuse(name, size, "bad-header", str(problem))
    common: dict[str, Any] = {
        "name": name,
        "size_bytes": size,
        "tensors": tuple(tensors),
    }
    if not tensors:
        return WeightFile(**common, problem="empty", detail=f"{size} bytes that hold no tensor")
    if end > size:
        detail = f"{size:,} bytes on disk, {end:,} promised by the header"
        return WeightFile(**common, problem="truncated", detail=detail, missing_bytes=end - size)
    if end < size:
        detail = f"{size - end:,} bytes at the end that no tensor covers"
        return WeightFile(**common, problem="bad-header", detail=detail)
    return WeightFile(**common)


def _tensor(key: str, entry: Any, data_start: int, file: str) -> Tensor:
    """Check one entry of a header.

    Raises:
        BadHeader: it does not follow the format.
    """
    if not isinstance(entry, dict):
        raise BadHeader(f"the entry of '{key}' is not an object")
    dtype, shape, span = _fields(entry)
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(span):
        raise BadHeader(f"the entry of '{key}' lacks a dtype, shape or data_offsets")
    if len(span) != 2 or span[0] > span[1]:
        raise BadHeader(f"the offsets of '{key}' are {span}")
    made = Tensor(
        name=key,
        dtype=dtype,
        shape=tuple(shape),
        start=data_start + span[0],
        end=data_start + span[1],
        file=file,
    )
    if dtype not in BITS:
        raise BadHeader(f"'{key}' has the unknown type '{dtype[:40]}'")
    if made.elements * BITS[dtype] != (made.end - made.start) * 8:
        need = -(-made.elements * BITS[dtype] // 8)
        said = f"{need:,} bytes" if need < LARGEST else "more bytes than any file holds"
        shown = str(shape)[:200]
        raise BadHeader(f"'{key}' {dtype} {shown} needs {said}, not {span[1] - span[0]:,}")
    return made


def _fields(entry: dict[str, Any]) -> tuple[Any, Any, Any]:
    return entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")


def _are_sizes(value: Any) -> bool:
    """Whether `value` is a list of at most 64 plain, representable sizes."""
    if not isinstance(value, list) or len(value) > 64:
        return False
    # With all() it takes twice as long, for each of 250,000 tensors.
    for item in value:  # noqa: SIM110
        if type(item) is not int or not 0 <= item < 2**53:
            return False
    return True


def _check_layout(tensors: list[Tensor], data_start: int) -> int:
    """Return where the last tensor ends.

    Raises:
        BadHeader: tensors overlap or leave holes.
    """
    position = data_start
    for tensor in sorted(tensors, key=lambda t: (t.start, t.end)):
        if tensor.start != position:
            word = "overlaps the tensor before it" if tensor.start < position else "leaves a hole"
            raise BadHeader(f"'{tensor.name}' starts at byte {tensor.start} and {word}")
        position = tensor.end
    return position
