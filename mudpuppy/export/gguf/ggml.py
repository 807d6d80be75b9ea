"""llama.cpp's own quantiser, in a shared library, and a trial of it. Standard library only.

Run as a script (`python ggml.py LIBRARY < cases > results`) it imports neither numpy nor this
package: a library that kills its process kills nothing else. `llama_model_quantize` would take a
whole file; `ggml_quantize_chunk`, which it is made of, takes rows.
"""

from __future__ import annotations

import base64
import ctypes
import json
import sys
from dataclasses import dataclass
from typing import TypedDict


class Case(TypedDict):
    """Rows to quantise, and what their type is called and made of."""

    rows: str
    """Float32 values, as base64."""
    num_rows: int
    columns: int
    type: str
    number: int
    block: int
    block_bytes: int


class Unusable(Exception):
    """A library that cannot quantise; the text says why, as part of a sentence."""


@dataclass(frozen=True, slots=True)
class TypeForm:
    """How ggml stores a type."""

    number: int
    """Its number in files and in calls."""
    block: int
    """Values of a block."""
    block_bytes: int
    """Bytes of a block."""

    def row_bytes(self, columns: int) -> int:
        """Return the bytes of a row whose length is a multiple of the block."""
        return columns // self.block * self.block_bytes


class Ggml:
    """A shared library that exports ggml's functions.

    Args:
        path: the library; one that is loaded already is not loaded again.

    Raises:
        Unusable: it cannot be loaded, or lacks a function.
    """

    def __init__(self, path: str) -> None:
        try:
            library = ctypes.CDLL(path)
            self._quantise = library.ggml_quantize_chunk
            self._is_valid = library.ggml_validate_row_data
            self._name = library.ggml_type_name
            self._row_bytes = library.ggml_row_size
        except (OSError, AttributeError) as error:
            raise Unusable(f"it cannot be used: {error}") from None
        pointer, whole = ctypes.c_void_p, ctypes.c_int64
        self._quantise.argtypes = (ctypes.c_int, pointer, pointer, whole, whole, whole, pointer)
        self._quantise.restype = ctypes.c_size_t
        self._is_valid.argtypes = (ctypes.c_int, pointer, ctypes.c_size_t)
        self._is_valid.restype = ctypes.c_bool
        self._name.argtypes = (ctypes.c_int,)
        self._name.restype = ctypes.c_char_p
        self._row_bytes.argtypes = (ctypes.c_int, whole)
        self._row_bytes.restype = ctypes.c_size_t

    def check_type(self, name: str, form: TypeForm) -> None:
        """Make sure that the library means the same by a type's number.

        Raises:
            Unusable: it does not.
        """
        said = (self._name(form.number) or b"").decode(errors="replace")
        if said.upper() != name:
            raise Unusable(f"its type {form.number} is {said or 'none'}, not {name}")
        size = self._row_bytes(form.number, form.block)
        if size != form.block_bytes:
            raise Unusable(f"a block of {name} has {size} bytes there, not {form.block_bytes}")

    def quantise(self, number: int, rows: int, out: int, num_rows: int, columns: int) -> int:
        """Quantise rows, without the interpreter's lock.

        Args:
            number: of the type.
            rows: address of float32 values.
            out: address of enough bytes for them.
            num_rows: number of rows.
            columns: their length, a multiple of the block: the library ends the process otherwise.

        Returns:
            The bytes written.
        """
        return int(self._quantise(number, rows, out, 0, num_rows, columns, None))

    def is_valid(self, number: int, data: int, size: int) -> bool:
        """Return whether no scale among quantised blocks is infinite or not a number."""
        return bool(self._is_valid(number, data, size))


def run_case(library: Ggml, case: Case) -> bytes:
    """Return the quantised rows of a case.

    Raises:
        Unusable: the library knows the type otherwise, or writes another number of bytes.
    """
    form = TypeForm(case["number"], case["block"], case["block_bytes"])
    library.check_type(case["type"], form)
    num_rows, columns = case["num_rows"], case["columns"]
    rows = ctypes.create_string_buffer(base64.b64decode(case["rows"]))
    size = num_rows * form.row_bytes(columns)
    out = ctypes.create_string_buffer(size)
    target = ctypes.addressof(out)
    written = library.quantise(form.number, ctypes.addressof(rows), target, num_rows, columns)
    if written != size:
        raise Unusable(f"it wrote {written} bytes of {case['type']}, not {size}")
    return out.raw


def main(path: str) -> None:
    """Run the cases of the standard input; print what came out, or why nothing did, as JSON."""
    cases: list[Case] = json.load(sys.stdin)
    try:
        library = Ggml(path)
        results = [base64.b64encode(run_case(library, case)).decode() for case in cases]
        json.dump({"results": results}, sys.stdout)
    except Unusable as error:
        json.dump({"unusable": str(error)}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
