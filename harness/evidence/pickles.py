"""List what a pickle would call, without calling it (`pickletools` reads opcodes, nothing runs)."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

from harness.evidence.source import CheckpointEvidence, provides
from harness.registry import Missing

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
"""Endings of files that loaders unpickle."""
PICKLE_LIMIT_BYTES = 32_000_000
"""Largest pickle stream that is listed; tensors are stored outside it."""
OPCODE_LIMIT = 2_000_000
"""Opcodes after which a stream is given up."""
DANGEROUS_MODULES = frozenset(
    [
        "os",
        "posix",
        "nt",
        "subprocess",
        "sys",
        "shutil",
        "socket",
        "runpy",
        "pty",
        "importlib",
        "builtins",
        "__builtin__",
        "webbrowser",
        "ctypes",
        "code",
        "codeop",
        "commands",
        "pickle",
        "_pickle",
        "multiprocessing",
        "asyncio",
        "urllib",
        "http",
        "requests",
        "tempfile",
        "pathlib",
        "threading",
        "signal",
        "timeit",
        "pdb",
        "bdb",
        "cProfile",
        "operator",
    ]
)
"""Modules with functions that run code, start programs or reach the network."""
HARMLESS = frozenset(
    f"builtins.{name}"
    for name in [
        "set",
        "frozenset",
        "dict",
        "list",
        "tuple",
        "bytearray",
        "bytes",
        "int",
        "float",
        "complex",
        "bool",
        "str",
        "slice",
        "range",
        "object",
        "type",
        "Exception",
        "ValueError",
    ]
) | {"pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "operator.itemgetter"}
"""Members of those modules that ordinary training files hold."""


def list_calls(raw: bytes) -> tuple[str, ...]:
    """Return the functions and classes a pickle names, `module.name`, in order of first use.

    Raises:
        ValueError: the bytes are not a pickle.
    """
    found: dict[str, None] = {}
    strings: list[str] = []
    for count, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
        if count > OPCODE_LIMIT:
            raise ValueError(f"more than {OPCODE_LIMIT:,} operations")
        if opcode.name in ("GLOBAL", "INST") and isinstance(argument, str):
            found[argument.replace(" ", ".", 1)] = None
        elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
            found[".".join(strings[-2:])] = None
        elif isinstance(argument, str):
            strings.append(argument)
    return tuple(found)


def is_dangerous(call: str) -> bool:
    """Whether a named function can run code, start programs or reach the network."""
    return call.split(".")[0] in DANGEROUS_MODULES and call not in HARMLESS


def read_pickle_bytes(path: Path) -> bytes:
    """Return the pickle stream of a torch file, new (zip) or old, without its tensors.

    Raises:
        ValueError: there is none that may be read.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip_member(path)
        with path.open("rb") as handle:
            return handle.read(PICKLE_LIMIT_BYTES)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as problem:
        raise ValueError(f"cannot be read: {problem}") from problem


def _read_zip_member(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith("data.pkl"):
                if info.file_size > PICKLE_LIMIT_BYTES:
                    raise ValueError(f"its pickle has {info.file_size:,} bytes")
                return archive.read(info)
    raise ValueError("a zip archive without data.pkl")


@provides("pickles")
def list_pickles(evidence: CheckpointEvidence) -> dict[str, tuple[str, ...]]:
    """Return, for every pickled file of the folder, the dangerous functions that it names."""
    names = [n for n in evidence.get("files").names if n.endswith(PICKLE_SUFFIXES)]
    found = {}
    for name in names:
        try:
            calls = list_calls(read_pickle_bytes(evidence.folder / name))
        except (ValueError, IndexError, KeyError, OverflowError):
            continue  # not a pickle at all: nothing would be called
        found[name] = tuple(call for call in calls if is_dangerous(call))
    if not found:
        raise Missing("the folder holds no pickled file")
    return found
