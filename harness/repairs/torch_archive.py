"""Read the tensors of a torch archive without unpickling it: a small machine of its own.

Only what `torch.save(state_dict)` writes is understood: a dictionary of names to tensors over
uncompressed storages. Everything else, be it as harmless as a number, is refused; nothing is
imported and nothing is called, so that a hostile file can at most be refused (FM59).
"""

from __future__ import annotations

import math
import pickletools
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.repairs.draft import NotCertain

PICKLE_LIMIT_BYTES = 16_000_000
"""Longest pickle that is followed: some 100,000 tensors."""
OPERATION_LIMIT = 2_000_000
"""Operations that are followed; a state dictionary takes some twenty for each tensor."""
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
_BROKEN = (
    *(KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError),
    *(OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error),
)
"""What a damaged archive can make zipfile, pickletools and the machine here raise."""
_MARK = object()


class _Name(NamedTuple):
    """Something that the pickle looks up."""

    text: str


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
        except (OSError, zipfile.BadZipFile) as problem:
            raise NotCertain(f"{path.name} is no zip archive of torch: {problem}") from None
        try:
            self._members = {one.filename: one for one in self._zip.infolist()}
            found = _run(self._read_pickle(path.name))
            if not isinstance(found, dict) or not found:
                raise NotCertain(f"{path.name} does not hold a dictionary of tensors")
            self.tensors = tuple(self._check(name, one) for name, one in found.items())
        except NotCertain:
            self._zip.close()
            raise
        except _BROKEN as error:
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
        except _BROKEN as error:
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

    def _read_pickle(self, file: str) -> bytes:
        pickles = [name for name in self._members if name.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].count("/") != 1:
            raise NotCertain(f"{file} is no archive of torch")
        self._root = pickles[0].partition("/")[0]
        order = self._members.get(f"{self._root}/byteorder")
        if order is not None and self._zip.read(order)[:10] != b"little":
            raise NotCertain(f"{file} was written on a machine of the other byte order")
        with self._zip.open(self._members[pickles[0]]) as handle:
            raw = handle.read(PICKLE_LIMIT_BYTES + 1)
        if len(raw) > PICKLE_LIMIT_BYTES:
            raise NotCertain(f"the list of tensors in {file} is longer than is read here")
        return raw

    def _check(self, name: Any, found: Any) -> StoredTensor:
        """Return one entry as a tensor that lies inside its storage."""
        if not isinstance(name, str) or not isinstance(found, tuple) or len(found) != 4:
            raise NotCertain(f"the entry {str(name)[:100]!r} is no tensor")
        storage, offset, shape, strides = found
        if not isinstance(storage, _Storage) or not isinstance(shape, tuple):
            raise NotCertain(f"the entry {name[:100]!r} is no tensor")
        if not isinstance(strides, tuple) or len(shape) != len(strides):
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


def _run(raw: bytes) -> Any:
    """Follow a pickle and return what it makes.

    Raises:
        NotCertain: it does something that a dictionary of tensors does not need.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
        if number > OPERATION_LIMIT:
            raise NotCertain(f"the pickle has more than {OPERATION_LIMIT:,} operations")
        if opcode.name == "STOP":
            return stack.pop()
        _step(opcode.name, argument, stack, memo)
    raise NotCertain("the pickle has no end")


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TEXTS_AND_NUMBERS = (
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINFLOAT"),
    *("BININT", "BININT1", "BININT2", "LONG1"),
)


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """Do one operation."""
    if name in ("PROTO", "FRAME"):
        return
    if name in _TEXTS_AND_NUMBERS:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name == "MARK":
        stack.append(_MARK)
    elif name in ("EMPTY_DICT", "EMPTY_LIST"):
        stack.append({} if name == "EMPTY_DICT" else [])
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "GLOBAL":
        stack.append(_Name(argument.replace(" ", ".", 1)))
    elif name == "STACK_GLOBAL":
        last, first = stack.pop(), stack.pop()
        stack.append(_Name(f"{first}.{last}"))
    else:
        _combine(name, stack)


def _combine(name: str, stack: list[Any]) -> None:
    """Do an operation that takes several things from the stack."""
    if name in ("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
        count = 0 if name == "EMPTY_TUPLE" else int(name[-1])
        stack.append(tuple(_take(stack, count)))
    elif name == "TUPLE":
        stack.append(tuple(_take_marked(stack)))
    elif name in ("SETITEM", "SETITEMS"):
        found = _take(stack, 2) if name == "SETITEM" else _take_marked(stack)
        if not all(isinstance(key, str) for key in found[::2]):  # hashing nested tuples recurses
            raise NotCertain("the pickle has a key that is no text")
        stack[-1].update(zip(found[::2], found[1::2], strict=True))
    elif name in ("APPEND", "APPENDS"):
        found = _take(stack, 1) if name == "APPEND" else _take_marked(stack)
        stack[-1].extend(found)
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif name == "REDUCE":
        called, given = _take(stack, 2)
        stack.append(_call(called, given))
    elif name == "BUILD":
        _, target = stack.pop(), stack[-1]  # versions of modules, which no tensor depends on
        if not isinstance(target, dict):
            raise NotCertain("the pickle sets attributes of something that is no dictionary")
    else:
        raise NotCertain(f"the pickle does something that tensors do not need ({name})")


def _take(stack: list[Any], count: int) -> list[Any]:
    if count > len(stack):
        raise NotCertain("the pickle takes more than it has")
    found = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return found


def _take_marked(stack: list[Any]) -> list[Any]:
    place = max(index for index, item in enumerate(stack) if item is _MARK)
    found = stack[place + 1 :]
    del stack[place:]
    return found


def _storage(given: Any) -> _Storage:
    kind, storage, key, _, elements = given
    dtype = STORAGES.get(storage.text.rpartition(".")[2]) if isinstance(storage, _Name) else None
    is_torch = isinstance(storage, _Name) and storage.text.rpartition(".")[0] == "torch"
    if kind != "storage" or dtype is None or not is_torch or not str(key).isalnum():
        raise NotCertain("the pickle names a storage of an unknown kind")
    if type(elements) is not int or elements < 0:
        raise NotCertain("the pickle names a storage without a size")
    return _Storage(dtype, str(key), elements)


def _call(called: Any, given: Any) -> Any:
    """Make what the two or three known names make; nothing is looked up or called."""
    name = called.text if isinstance(called, _Name) else "something that is no name"
    if name == "collections.OrderedDict" and given == ():
        return {}
    if name == "torch._utils._rebuild_tensor_v2":
        if len(given) > 6 and given[6]:  # negated or conjugated: the storage holds other values
            raise NotCertain("a tensor is stored with marks that change its values")
        return tuple(given[:4])
    if name == "torch._utils._rebuild_parameter":
        return given[0]
    raise NotCertain(f"the pickle calls {name[:200]}")
