"""How scan.c is called: its structure, its types' numbers, its library. Standard library only."""

from __future__ import annotations

import ctypes

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
