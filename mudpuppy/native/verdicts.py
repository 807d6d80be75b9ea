"""What the self-test said of a kernel, kept beside what it judged. No torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mudpuppy.files import write_json_atomic

VERDICT = "verdict.json"
"""Written last; lists every other file with its hash, so its presence means a complete folder."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the self-test said of a fresh build."""

    passed: bool
    """Whether the build may be used."""
    why: str
    """What was tested, or what went wrong."""
    made_by: str
    """The compiler's version and the flag that named the processor; of Triton, its version."""


def record(folder: Path, verdict: Verdict) -> None:
    """Write a verdict into a folder of the cache, which is complete then."""
    files = {path.name: _hash_file(path) for path in sorted(folder.iterdir())}
    write_json_atomic(folder / VERDICT, {**asdict(verdict), "files": files})


def is_complete(folder: Path) -> bool:
    """Return whether a folder holds a verdict, and beside it what was judged, unchanged."""
    try:
        files = json.loads((folder / VERDICT).read_text(encoding="utf-8"))["files"]
        return all(_hash_file(folder / name) == known for name, known in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # whatever is wrong with it, it is to be built again


def read_verdict(folder: Path) -> Verdict:
    """Return the verdict of a complete folder."""
    held = json.loads((folder / VERDICT).read_text(encoding="utf-8"))
    return Verdict(passed=held["passed"], why=held["why"], made_by=held["made_by"])


def make_key(*parts: str) -> str:
    """Return the name of a verdict that depends on all of `parts`."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
