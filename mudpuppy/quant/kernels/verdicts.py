"""What the self-test said of a kernel, kept beside what it judged. No torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mudpuppy.tiny.build import write_manifest

VERDICT = "verdict.json"


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
    (folder / VERDICT).write_text(json.dumps(asdict(verdict), indent=2), encoding="utf-8")
    write_manifest(folder, {})


def read_verdict(folder: Path) -> Verdict:
    """Return the verdict of a complete folder."""
    return Verdict(**json.loads((folder / VERDICT).read_text(encoding="utf-8")))


def make_key(*parts: str) -> str:
    """Return the name of a verdict that depends on all of `parts`."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
