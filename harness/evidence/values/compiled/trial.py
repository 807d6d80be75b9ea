"""Try the compiled library on files, in a process of its own. Standard library only.

Run as a script (`python trial.py LIBRARY < cases > results`) it imports neither numpy nor this
package, so that it starts in an instant and a library that kills it kills nothing else.
"""

from __future__ import annotations

import base64
import ctypes
import json
import runpy
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict

PAST = b"\xa5" * 8
"""What lies past the results of a case, and must still lie there afterwards."""


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


def run_case(abi: Any, library: ctypes.CDLL, case: Case) -> Result:
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
        task = abi.Task(
            -(-ctypes.addressof(buffer) // 64) * 64,
            *(ctypes.addressof(one) if rows else None for one in room.values()),
            case["shift"],
            len(raw),
            case["unit"],
            case["step"],
            file.fileno(),
            abi.KINDS[case["dtype"]],
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
    # by its path: in a process that is to start in an instant this package cannot be found
    abi = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("abi.py"))))
    library = abi.open_library(path)
    json.dump([run_case(abi, library, case) for case in cases], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
