"""Which subjects a path holds: one file, the top folder, `checkpoint-*`, and what else is in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.evidence.files.inventory import list_files, list_folders
from harness.evidence.files.presence import holds_weights, is_subject
from harness.evidence.gguf.model import first_parts
from harness.registry import Missing

SUBFOLDERS = ("merged", "gptq", "int8")
"""Folders in which this project's engine leaves further artefacts."""
HUB_FOLDER = re.compile(r"(models|datasets|spaces)--.+")
"""How a model hub's cache names the folder of a repository."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One checkpoint inside the examined path."""

    name: str
    """Path relative to the examined one; `.` for itself."""
    folder: Path
    """The folder, or the folder that the file lies in."""
    file: str = ""
    """The one file that is the subject; empty for the whole folder."""

    @property
    def path(self) -> Path:
        """What is examined."""
        return self.folder / self.file


def find_subjects(root: Path) -> tuple[Subject, ...]:
    """Return the checkpoints of a path; the path itself when there is none."""
    if root.is_file():
        return (Subject(name=".", folder=root.parent, file=root.name),)
    found = [one for one in _candidates(root) if is_subject(one.folder)]
    found += _gguf_models(root)
    return tuple(found) or (Subject(name=".", folder=root),)


def _candidates(root: Path) -> Iterator[Subject]:
    yield Subject(name=".", folder=root)
    children = list_folders(root)
    steps = [name for name in children if re.fullmatch(r"checkpoint-\d{1,12}", name)]
    for name in sorted(steps, key=lambda n: int(n.rpartition("-")[2])):
        yield Subject(name=name, folder=root / name)
    for name in SUBFOLDERS:
        if name in children:
            yield Subject(name=name, folder=root / name)
    if HUB_FOLDER.fullmatch(root.name) and "snapshots" in children:
        for name in _snapshots(root):
            yield Subject(name=f"snapshots/{name}", folder=root / "snapshots" / name)
    elif holds_weights(root):
        for name in children:
            if name not in (*steps, *SUBFOLDERS) and _is_adapter(root / name):
                yield Subject(name=name, folder=root / name)


def _gguf_models(root: Path) -> list[Subject]:
    """Return every GGUF model that lies in a folder; a split one is one model."""
    try:
        names = first_parts(list_files(root))
    except Missing:
        return []
    return [Subject(name=name, folder=root, file=name) for name in names]


def _is_adapter(folder: Path) -> bool:
    try:
        names = list_files(folder)
    except Missing:
        return False
    return any(name.startswith("adapter_model.") for name in names)


def _snapshots(root: Path) -> list[str]:
    """Return the revision that `main` points to in a model hub's cache; all when there is none."""
    children = list_folders(root / "snapshots")
    try:
        main = (root / "refs" / "main").read_text(encoding="utf-8")[:100].strip()
    except (OSError, UnicodeDecodeError):
        return children
    return [main] if main in children else children
