"""Read tensors of safetensors files, whole or in part, into memory of their own.

Nothing is mapped: a mapped file counts to the process for as long as it is open, and a tensor that
is only looked at on its way to fewer bits would stay in memory with its whole file.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mudpuppy.safefile import TensorEntry

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The float types of the format that arithmetic is done in."""
DTYPES = {
    **FLOATS,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""torch's type for each type of the format."""


OWN_PAGES = 1 << 20
"""Bytes from which on a tensor gets pages of its own, which go back to the system with it: in the
heap, what is kept would settle between what is only passing, and the heap would grow."""


class Reader:
    """Reads parts of tensors; keeps the files open."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}

    def close(self) -> None:
        """Close every file."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def read_into(self, entry: TensorEntry, start: int, raw: Tensor) -> None:
        """Fill the bytes `raw` from byte `start` of a tensor.

        Raises:
            OSError: the file cannot be read, or became shorter.
        """
        path = str(entry.file)
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
        view = raw.numpy().data
        done = 0
        while done < len(view):
            count = os.preadv(self._files[path], [view[done:]], entry.start + start + done)
            if count == 0:
                raise OSError(f"{path} became shorter while it was read")
            done += count

    def read_bytes(self, entry: TensorEntry, start: int, stop: int) -> Tensor:
        """Return the bytes from `start` to `stop` of a tensor, uint8."""
        size = stop - start
        if size < OWN_PAGES:
            raw = torch.empty(size, dtype=torch.uint8)
        else:
            raw = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
        self.read_into(entry, start, raw)
        return raw

    def read(self, entry: TensorEntry, dtype: torch.dtype | None = torch.float32) -> Tensor:
        """Return a whole tensor in `dtype`, or in its own type where that is None.

        Raises:
            ValueError: the type is none that torch has.
        """
        if entry.dtype not in DTYPES:
            raise ValueError(f"{entry.file}: {entry.name} is of the unknown type {entry.dtype}")
        raw = self.read_bytes(entry, 0, entry.size)
        found = raw.view(DTYPES[entry.dtype]).view(entry.shape)
        return found if dtype is None else found.to(dtype)


class Later:
    """A tensor that is made when it is asked for, in the form that transformers asks.

    transformers takes a state dict of such in place of its own view of a file (`[...]` makes the
    tensor, `get_dtype` names its type first); so every tensor is in memory once, and only then.
    """

    def __init__(self, dtype: str, make: Callable[[], Tensor]) -> None:
        self._dtype, self._make = dtype, make

    def __getitem__(self, index: Any) -> Tensor:
        """Return the tensor, or a part of it."""
        made = self._make()
        return made if index is ... else made[index]

    def get_dtype(self) -> str:
        """Return the type as safetensors calls it."""
        return self._dtype


def read_later(tensors: Mapping[str, TensorEntry], reader: Reader) -> dict[str, Later]:
    """Return a state dict whose tensors are read when they are asked for."""
    return {
        name: Later(entry.dtype, lambda entry=entry: reader.read(entry, None))  # type: ignore[misc]
        for name, entry in tensors.items()
    }
