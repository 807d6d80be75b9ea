"""Open the compiled library, and try it on files in a process of its own. Standard library only.

Run as a script (`python trial.py LIBRARY < cases > results`) it imports neither numpy nor this
package, so that it starts in an instant and a library that kills it kills nothing else.
"""

from __future__ import annotations

import base64
import ctypes
import json
import sys
import tempfile
from typing import Any, TypedDict

KINDS = {
    "F64": 0,
    "F32": 1,
    "F16": 2,
    "BF16": 3,
    "F8_E4M3": 4,
    "F8_E5M2": 5,
    "F8_E4M3FNUZ": 6,
    "F8_E5M2FNUZ": 7,
    "F8_E8M0": 8,
}
"""Numbers of the types in scan.c."""
ENDED = -1
"""What scan.c says of a file that is too short."""
PAST = b"\xa5" * 8
"""What lies past the results of a case, and must still lie there afterwards."""


class Task(ctypes.Structure):
    """What scan.c is told and what it found; the fields and their order are those of its `Task`."""

    _fields_ = (
        ("buffer", ctypes.c_void_p),
        ("squares", ctypes.c_void_p),
        ("marks", ctypes.c_void_p),
        ("zero", ctypes.c_void_p),
        ("offset", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("unit", ctypes.c_int64),
        ("step", ctypes.c_int64),
        ("handle", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("nonfinite", ctypes.c_int64),
        ("zeros", ctypes.c_int64),
        ("low", ctypes.c_int64),
        ("high", ctypes.c_int64),
        ("seen", ctypes.c_int32),
        ("error", ctypes.c_int32),
    )


class Case(TypedDict):
    """A tensor to look at."""

    dtype: str
    raw: str
    """Its bytes, in base64."""
    rows: int
    """Rows that are summed; 0 for none."""
    unit: int
    step: int
    shift: int
    """Bytes before it in the file."""
    lacking: int
    """Bytes that the file is too short by."""


class Result(TypedDict):
    """What was found in it; arrays are bytes in base64, with `PAST` behind them."""

    nonfinite: int
    zeros: int
    low: int
    high: int
    seen: int
    error: int
    squares: str
    marks: str
    zero: str


def open_library(path: str) -> ctypes.CDLL:
    """Load a compiled scan.c.

    Raises:
        OSError: it cannot be loaded, or was compiled from another source.
    """
    library = ctypes.CDLL(path)
    library.mudpuppy_task_bytes.restype = ctypes.c_int64
    library.mudpuppy_task_bytes.argtypes = ()
    if library.mudpuppy_task_bytes() != ctypes.sizeof(Task):
        raise OSError(f"{path}: made from another source")
    library.mudpuppy_scan.restype = None
    library.mudpuppy_scan.argtypes = (ctypes.POINTER(Task),)
    return library


def run_case(library: ctypes.CDLL, case: Case) -> Result:
    """Return what the library finds in a case."""
    raw, rows = base64.b64decode(case["raw"]), case["rows"]
    buffer = ctypes.create_string_buffer(case["step"] + 64)
    room = {
        name: ctypes.create_string_buffer(bytes(rows * size) + PAST, rows * size + len(PAST))
        for name, size in (("squares", 4), ("marks", 8), ("zero", 1))
    }
    with tempfile.TemporaryFile() as file:
        file.write(bytes(case["shift"]) + raw[: len(raw) - case["lacking"]])
        file.flush()
        task = Task(
            -(-ctypes.addressof(buffer) // 64) * 64,
            *(ctypes.addressof(one) if rows else None for one in room.values()),
            case["shift"],
            len(raw),
            case["unit"],
            case["step"],
            file.fileno(),
            KINDS[case["dtype"]],
        )
        library.mudpuppy_scan(task)
    arrays = {name: base64.b64encode(one.raw).decode() for name, one in room.items()}
    found: Any = {
        name: getattr(task, name) for name in ("nonfinite", "zeros", "low", "high", "seen", "error")
    }
    result: Result = found | arrays
    return result


def main(path: str) -> None:
    """Run the cases of the standard input, and print what came out as JSON."""
    cases: list[Any] = json.load(sys.stdin)
    library = open_library(path)
    json.dump([run_case(library, case) for case in cases], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
