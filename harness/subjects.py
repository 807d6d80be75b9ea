"""Which folders of a path are checkpoints: the top, `checkpoint-*`, and further artefacts in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.evidence.files import list_files
from harness.registry import Missing

SUBFOLDERS = ("merged", "gptq", "int8")
"""Folders in which this project's engine leaves further artefacts."""
WEIGHT_NAMES = re.compile(
    r"^(adapter_config\.json|adapter_model\.(safetensors|bin)|.*\.safetensors(\.index\.json)?|"
    r"pytorch_model.*\.bin(\.index\.json)?)$"
)
"""Files that make a folder a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One checkpoint inside the examined path."""

    name: str
    """Path relative to the examined one; `.` for itself."""
    folder: Path
    """The folder."""


def find_subjects(root: Path) -> tuple[Subject, ...]:
    """Return the checkpoints of a path; the path itself when there is none."""
    found = [subject for subject in _candidates(root) if holds_weights(subject.folder)]
    return tuple(found) or (Subject(name=".", folder=root),)


def holds_weights(folder: Path) -> bool:
    """Whether a folder has files that belong to weights, readable or not."""
    try:
        return any(WEIGHT_NAMES.match(name) for name in list_files(folder))
    except Missing:
        return False


def _candidates(root: Path) -> Iterator[Subject]:
    yield Subject(name=".", folder=root)
    try:
        children = sorted(path.name for path in root.iterdir() if path.is_dir())
    except OSError:
        return
    steps = [name for name in children if re.fullmatch(r"checkpoint-\d+", name)]
    for name in sorted(steps, key=lambda n: int(n.rpartition("-")[2])):
        yield Subject(name=name, folder=root / name)
    for name in SUBFOLDERS:
        if name in children:
            yield Subject(name=name, folder=root / name)
