"""Keep the one large JSON file that was read last: many probes ask for one tokenizer.json."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.evidence.files.jsonfile import limit_of, read_object

if TYPE_CHECKING:
    from harness.evidence.source import CheckpointEvidence

KEPT_BYTES = 1_000_000
"""Files below this are parsed again each time, which takes some milliseconds."""
_kept: dict[tuple[int, str], dict[str, Any]] = {}


def read_kept(evidence: CheckpointEvidence, name: str) -> dict[str, Any]:
    """Return the JSON object in a file of the subject, which must not be changed.

    One large file is kept at a time, because the largest take 200 MB when parsed, and no longer
    than the evidence that read it.

    Raises:
        UnreadableJson: it cannot be read, is too large, or is not one JSON object.
    """
    path = evidence.folder / name
    if not _is_large(path):
        return read_object(path, limit_of(name))
    key = (id(evidence), name)
    if (value := _kept.get(key)) is None:
        _kept.clear()  # before the next is parsed, not after
        value = read_object(path, limit_of(name))
        _kept[key] = value
        weakref.finalize(evidence, _kept.pop, key, None)
    return value


def _is_large(path: Path) -> bool:
    try:
        return path.stat().st_size >= KEPT_BYTES
    except OSError:
        return False
