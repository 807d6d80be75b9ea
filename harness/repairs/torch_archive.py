"""Read the tensors of a torch archive without unpickling it.

Of the tree that `harness.evidence.files.pickle_tree` makes, which calls nothing, only what
`torch.save(state_dict)` writes is understood: a dictionary of names to tensors over uncompressed
storages. Everything else, be it as harmless as a number, is refused (FM59).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.evidence.files.archives import BROKEN_ARCHIVE
from harness.evidence.files.pickle_tree import Call, Named, Outside, read_tree
from harness.evidence.files.pickles import list_names
from harness.repairs.draft import NotCertain

DIMENSIONS = 64
"""Dimensions that a tensor may have."""
CHUNK_BYTES = 1 << 22
"""Bytes copied at once."""
STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
"""Types of the safetensors format by torch's storage classes."""
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
SIZES |= {"U8": 1, "BOOL": 1}
"""Bytes of an element."""
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
NEEDED = {"collections.OrderedDict", TENSOR, PARAMETER, *(f"torch.{name}" for name in STORAGES)}
"""All that the pickle of a state dictionary names."""


class _Storage(NamedTuple):
    """A storage: its type, its member of the archive and its elements."""

    dtype: str
    key: str
    elements: int


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of an archive."""

    name: str
    """Its key."""
    dtype: str
    """Type, as the safetensors format names it."""
    shape: tuple[int, ...]
    """Sizes."""
    strides: tuple[int, ...]
    """Steps, in elements."""
    offset: int
    """First element in the storage."""
    storage: str
    """Member of the archive."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * SIZES[self.dtype]


class TorchArchive:
    """An archive whose tensors can be read."""

    def __init__(self, path: Path) -> None:
        """List the tensors.

        Raises:
            NotCertain: it is not what `torch.save(state_dict)` writes.
        """
        try:
            self._zip = zipfile.ZipFile(path)
        except BROKEN_ARCHIVE as problem:
            raise NotCertain(f"{path.name} is no zip archive of torch: {problem}") from None
        try:
            self._members = {one.filename: one for one in self._zip.infolist()}
            found = self._read_pickle(path.name)
            if not isinstance(found, dict) or not found:
                raise NotCertain(f"{path.name} does not hold a dictionary of tensors")
            self.tensors = tuple(self._check(name, one) for name, one in found.items())
            _require_plain(path)
        except NotCertain:
            self._zip.close()
            raise
        except BROKEN_ARCHIVE as error:
            self._zip.close()
            raise NotCertain(f"{path.name} cannot be followed: {str(error)[:100]}") from None

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def read(self, tensor: StoredTensor) -> Iterator[bytes]:
        """Yield the values in row-major order.

        Raises:
            NotCertain: the storage is shorter than it says.
        """
        size = SIZES[tensor.dtype]
        if _is_contiguous(tensor.shape, tensor.strides):
            yield from self._read_range(tensor, tensor.offset * size, tensor.num_bytes)
            return
        last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
        raw = b"".join(self._read_range(tensor, tensor.offset * size, (last + 1) * size))
        import numpy as np  # here, as every start of the doctor imports this file

        flat = np.frombuffer(raw, dtype=np.dtype((np.void, size)))
        steps = tuple(step * size for step in tensor.strides)
        view = np.lib.stride_tricks.as_strided(flat, tensor.shape, steps, writeable=False)
        yield np.ascontiguousarray(view).tobytes()

    def _read_range(self, tensor: StoredTensor, start: int, length: int) -> Iterator[bytes]:
        try:
            yield from self._read_member(tensor, start, length)
        except BROKEN_ARCHIVE as error:
            problem = f"{type(error).__name__} {error}"[:100]
            raise NotCertain(f"{tensor.storage} is damaged: {problem}") from None

    def _read_member(self, tensor: StoredTensor, start: int, length: int) -> Iterator[bytes]:
        with self._zip.open(self._members[tensor.storage]) as handle:
            handle.seek(start)
            while length:
                raw = handle.read(min(length, CHUNK_BYTES))
                if not raw:
                    raise NotCertain(f"{tensor.storage} ends inside {tensor.name}")
                length -= len(raw)
                yield raw

    def _read_pickle(self, file: str) -> Any:
        pickles = [name for name in self._members if name.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].count("/") != 1:
            raise NotCertain(f"{file} is no archive of torch")
        self._root = pickles[0].partition("/")[0]
        order = self._members.get(f"{self._root}/byteorder")
        if order is not None and self._zip.read(order)[:10] != b"little":
            raise NotCertain(f"{file} was written on a machine of the other byte order")
        with self._zip.open(self._members[pickles[0]]) as handle:
            return read_tree(handle)

    def _check(self, name: Any, found: Any) -> StoredTensor:
        """Return one entry as a tensor that lies inside its storage."""
        if not isinstance(name, str):
            raise NotCertain("the pickle has a key that is no text")
        outside, offset, shape, strides = _arguments(name, found)
        storage = _storage(outside)
        if not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise NotCertain(f"the entry {name[:100]!r} is no tensor")
        if len(shape) != len(strides):
            raise NotCertain(f"the entry {name[:100]!r} is no tensor")
        if len(shape) > DIMENSIONS:
            raise NotCertain(f"{name[:100]!r} has {len(shape)} dimensions")
        numbers = (offset, *shape, *strides)
        if not all(type(one) is int and 0 <= one < 2**48 for one in numbers):
            raise NotCertain(f"the sizes of {name[:100]!r} are no sizes")
        member = f"{self._root}/data/{storage.key}"
        info = self._members.get(member)
        size = storage.elements * SIZES[storage.dtype]
        is_whole = info is not None and info.file_size == size
        if info is None or not is_whole or info.compress_type != zipfile.ZIP_STORED:
            raise NotCertain(f"the storage of {name[:100]!r} is not there as it should be")
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if math.prod(shape) and (last >= storage.elements or math.prod(shape) > storage.elements):
            raise NotCertain(f"{name[:100]!r} reaches beyond its storage, or repeats it")
        return StoredTensor(
            name=name,
            dtype=storage.dtype,
            shape=tuple(shape),
            strides=tuple(strides),
            offset=offset,
            storage=member,
        )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _require_plain(path: Path) -> None:
    """Refuse a pickle that names anything else, wherever it does and whatever becomes of it.

    Raises:
        NotCertain: it does.
    """
    names, problem = list_names(path)
    if problem:
        raise NotCertain(f"{path.name} cannot be followed: {problem}")
    for name in names:
        if name not in NEEDED:
            raise NotCertain(f"the pickle calls {name[:200]}")


def _arguments(name: str, found: Any) -> tuple[Any, ...]:
    """Return storage, first element, shape and strides of an entry.

    Raises:
        NotCertain: it is no tensor, or its storage holds other values than it has.
    """
    called, given = _call(found)
    if called == PARAMETER and given:
        called, given = _call(given[0])
    if called != TENSOR or len(given) < 4:
        raise NotCertain(f"the entry {name[:100]!r} is no tensor")
    if len(given) > 6 and given[6]:  # negated or conjugated
        raise NotCertain(f"{name[:100]!r} is stored with marks that change its values")
    return given[:4]


def _call(found: Any) -> tuple[str, tuple[Any, ...]]:
    """Return the name and the arguments of a call; nothing where it is none, or does more."""
    is_plain = isinstance(found, Call) and isinstance(found.target, Named) and not found.state
    if not is_plain or not isinstance(found.arguments, tuple):
        return "", ()
    return found.target.name, found.arguments


def _storage(outside: Any) -> _Storage:
    """Return what lies outside of the pickle.

    Raises:
        NotCertain: it is no storage of a known kind.
    """
    key = outside.key if isinstance(outside, Outside) else None
    if not isinstance(key, tuple) or len(key) != 5 or not isinstance(key[1], Named):
        raise NotCertain("the pickle names a storage of an unknown kind")
    kind, named, member, _, elements = key
    package, _, storage = named.name.rpartition(".")
    is_known = kind == "storage" and package == "torch" and storage in STORAGES
    if not is_known or not isinstance(member, str) or not member.isalnum():
        raise NotCertain("the pickle names a storage of an unknown kind")
    if type(elements) is not int or elements < 0:
        raise NotCertain("the pickle names a storage without a size")
    return _Storage(STORAGES[storage], member, elements)
