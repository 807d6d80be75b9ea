"""Open the compiled library, and try it on cases in a process of its own. Standard library only.

Run as a script (`python trial.py LIBRARY < cases > results`) it imports neither torch nor this
package, so that it starts in an instant and a library that kills it kills nothing else.
"""

from __future__ import annotations

import base64
import ctypes
import json
import sys
from typing import Any, TypedDict

KINDS = {"float32": 0, "float16": 1, "bfloat16": 2, "uint8": 3}
"""Numbers of the types in dequantize.c; uint8 is the power-of-two scale E8M0."""
BYTES_THAT_FEED_A_THREAD = 32 * 1024
"""Bytes of result that a thread takes at a time: small enough to share out, and not to fight."""


class Task(ctypes.Structure):
    """What dequantize.c is told; the fields and their order are those of its `Task`."""

    _fields_ = (
        ("qweight", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("q_stride", ctypes.c_int64),
        ("scale_stride", ctypes.c_int64),
        ("out_stride", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("block", ctypes.c_int64),
        ("scale_kind", ctypes.c_int32),
        ("out_kind", ctypes.c_int32),
        ("grain", ctypes.c_int64),
        ("next", ctypes.c_int64),
    )


class Case(TypedDict):
    """A matrix to dequantise; bytes are base64."""

    qweight: str
    scales: str
    levels: list[float]
    rows: int
    columns: int
    block: int
    scale_kind: str
    out_kind: str
    shift: int
    """Bytes by which the packed rows are moved off every alignment."""


def open_library(path: str) -> ctypes.CDLL:
    """Load a compiled dequantize.c.

    Raises:
        OSError: it cannot be loaded, or was compiled from another source.
    """
    library = ctypes.CDLL(path)
    library.mudpuppy_task_bytes.restype = ctypes.c_int64
    library.mudpuppy_task_bytes.argtypes = ()
    if library.mudpuppy_task_bytes() != ctypes.sizeof(Task):
        raise OSError(f"{path}: made from another source")
    library.mudpuppy_dequantize.restype = None
    library.mudpuppy_dequantize.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
    return library


def grain(columns: int, item_bytes: int) -> int:
    """Return how many rows a thread takes at a time."""
    return max(1, BYTES_THAT_FEED_A_THREAD // max(1, columns * item_bytes))


def run_case(library: ctypes.CDLL, case: Case) -> bytes:
    """Return the dequantised rows of a case, as bytes."""
    rows, columns, block, shift = case["rows"], case["columns"], case["block"], case["shift"]
    packed = ctypes.create_string_buffer(bytes(shift) + base64.b64decode(case["qweight"]))
    scales = ctypes.create_string_buffer(base64.b64decode(case["scales"]))
    item_bytes = 4 if case["out_kind"] == "float32" else 2
    # one column of space between rows: a row that is written too far is seen
    out = ctypes.create_string_buffer(rows * (columns + 1) * item_bytes)
    table = (ctypes.c_float * 16)(*case["levels"])
    task = Task(
        ctypes.addressof(packed) + shift,
        ctypes.addressof(scales),
        ctypes.addressof(out),
        ctypes.addressof(table),
        (columns + 1) // 2,
        -(-columns // block),
        columns + 1,
        rows,
        columns,
        block,
        KINDS[case["scale_kind"]],
        KINDS[case["out_kind"]],
        grain(columns, item_bytes),
        0,
    )
    library.mudpuppy_dequantize(ctypes.addressof(task), None, 1)
    return out.raw[: rows * (columns + 1) * item_bytes]


def main(path: str) -> None:
    """Run the cases of the standard input, and print what came out as JSON."""
    cases: list[Any] = json.load(sys.stdin)
    library = open_library(path)
    results = [base64.b64encode(run_case(library, case)).decode() for case in cases]
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
