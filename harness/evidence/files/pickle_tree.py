"""The plain values of a pickle, built without calling anything (`pickletools` reads opcodes).

Numbers, texts, lists, tuples and dictionaries come out as they are. Whatever the pickle would look
up, call or take from outside becomes a `Named`, a `Call` or an `Outside`, which do nothing.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from harness.evidence.files.archives import BROKEN_ARCHIVE

PICKLE_LIMIT_BYTES = 32_000_000
"""Longest pickle that is read; that of an optimizer of a thousand tensors has 200 KB."""
OPCODE_LIMIT = 400_000
"""Operations after which a pickle is given up, a second or two; an optimizer of
a thousand tensors has some 60,000."""
_MARK = object()


class UnreadablePickle(ValueError):
    """A pickle that is damaged, too large, or does what cannot be followed."""


@dataclass(frozen=True)
class Named:
    """Something that the pickle looks up by its name."""

    name: str


@dataclass(frozen=True)
class Outside:
    """Something that lies outside the pickle, such as the numbers of a tensor."""

    key: Any


@dataclass
class Call:
    """Something that the pickle would call."""

    target: Any
    arguments: Any
    state: Any = field(default=None)
    """What the pickle would put into the result: attributes, or the items of a container."""


def read_torch_tree(path: Path) -> Any:
    """Return the values of a file that `torch.save` wrote.

    Raises:
        UnreadablePickle: it is no such file, or its pickle cannot be followed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [one for one in archive.namelist() if one.endswith("data.pkl")]
            if len(names) != 1:
                raise UnreadablePickle("it holds no pickle of torch, or several")
            if archive.getinfo(names[0]).file_size > PICKLE_LIMIT_BYTES:
                raise UnreadablePickle(f"its pickle is longer than {PICKLE_LIMIT_BYTES:,} bytes")
            with archive.open(names[0]) as handle:
                return read_tree(handle)
    except UnreadablePickle:
        raise
    except BROKEN_ARCHIVE as problem:
        raise UnreadablePickle(f"it cannot be read: {str(problem)[:120]}") from problem


def read_tree(handle: IO[bytes]) -> Any:
    """Return the values of the pickle at the start of a stream.

    Raises:
        UnreadablePickle: it is damaged, too large, or does what cannot be followed.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(_limit(handle))):
            if count > OPCODE_LIMIT:
                raise UnreadablePickle(f"more than {OPCODE_LIMIT:,} operations")
            if opcode.name == "STOP":
                return machine.stack[-1]
            machine.step(opcode, argument)
    except UnreadablePickle:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise UnreadablePickle(f"it breaks off: {str(problem)[:120]}") from problem
    raise UnreadablePickle("it has no end")


def _limit(handle: IO[bytes]) -> IO[bytes]:
    """Return a stream of at most the bytes that are read."""
    return cast(IO[bytes], _Limited(handle))


class _Limited:
    """A stream of which no more than `PICKLE_LIMIT_BYTES` are read."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle = handle
        self.left = PICKLE_LIMIT_BYTES

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes."""
        return self._take(self.handle.read(min(size, self.left + 1)))

    def readline(self) -> bytes:
        """Return the next line."""
        return self._take(self.handle.readline(self.left + 1))

    def _take(self, raw: bytes) -> bytes:
        self.left -= len(raw)
        if self.left < 0:
            raise UnreadablePickle(f"longer than {PICKLE_LIMIT_BYTES:,} bytes")
        return raw


class _Machine:
    """Stack and memo of an unpickler that looks nothing up and calls nothing."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Do what one operation does."""
        name = opcode.name
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("PROTO", "FRAME"):
            return
        elif name == "MARK":
            self.stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif name == "POP":
            self.stack.pop()
        elif name == "POP_MARK":
            self._since_mark()
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        elif name in _BUILDERS:
            _BUILDERS[name](self)
        elif name in ("GLOBAL", "INST"):
            self._look_up(name, str(argument).replace(" ", ".", 1))
        elif name.startswith("EXT"):
            self.stack.append(Named(f"extension {argument}"))
        elif name == "PERSID":
            self.stack.append(Outside(argument))
        elif not opcode.stack_before and len(opcode.stack_after) == 1:
            self.stack.append(argument)  # a number or a text
        else:
            raise UnreadablePickle(f"the operation {name} is not followed")

    def _look_up(self, name: str, named: str) -> None:
        found = Named(named)
        self.stack.append(Call(found, tuple(self._since_mark())) if name == "INST" else found)

    def _since_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        taken = []
        while (item := self.stack.pop()) is not _MARK:
            taken.append(item)
        return taken[::-1]

    def _tuple(self, size: int | None) -> None:
        if size is None:
            taken = self._since_mark()
        else:
            taken = self.stack[-size:]
            del self.stack[-size:]
        self.stack.append(tuple(taken))

    def _list(self) -> None:
        self.stack.append(self._since_mark())

    def _dict(self) -> None:
        self.stack.append(dict(_pairs(self._since_mark())))

    def _append(self) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _appends(self) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Call):
            target.state = items

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _set_items(self) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(_pairs(items))
        elif isinstance(target, Call):
            target.state = items

    def _global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise UnreadablePickle("it looks up a name that is no text")  # as text, endless
        self.stack.append(Named(f"{module}.{name}"))

    def _reduce(self) -> None:
        arguments, target = self.stack.pop(), self.stack.pop()
        is_dict = isinstance(target, Named) and target.name in _DICTS and not arguments
        self.stack.append({} if is_dict else Call(target, arguments))

    def _new(self) -> None:
        arguments, target = self.stack.pop(), self.stack.pop()
        self.stack.append(Call(target, arguments))

    def _new_with_words(self) -> None:
        self.stack.pop()
        self._new()

    def _obj(self) -> None:
        taken = self._since_mark()
        self.stack.append(Call(taken[0], tuple(taken[1:])))

    def _build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Call):
            self.stack[-1].state = state

    def _outside(self) -> None:
        self.stack.append(Outside(self.stack.pop()))

    def _frozen(self) -> None:
        self.stack.append(tuple(self._since_mark()))


_DICTS = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict")
_CONSTANTS: dict[str, Any] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_BUILDERS: dict[str, Any] = {
    "TUPLE": lambda machine: machine._tuple(None),
    "TUPLE1": lambda machine: machine._tuple(1),
    "TUPLE2": lambda machine: machine._tuple(2),
    "TUPLE3": lambda machine: machine._tuple(3),
    "LIST": _Machine._list,
    "DICT": _Machine._dict,
    "FROZENSET": _Machine._frozen,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "ADDITEMS": _Machine._appends,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "STACK_GLOBAL": _Machine._global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._new,
    "NEWOBJ_EX": _Machine._new_with_words,
    "OBJ": _Machine._obj,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._outside,
}


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield keys with their values; another kind of key would have to be hashed, or be lost."""
    if len(items) % 2:
        raise UnreadablePickle("it has a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not (isinstance(key, (str, int, float, bool)) or key is None):
            raise UnreadablePickle("it has a key that is no text and no number")
        yield key, value
