"""Build healthy checkpoints once, and keep them; hand out copies that may be broken."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.selftest.registry import Patient, load_healthy


class Recovery:
    """A ward that builds each healthy checkpoint when it is first asked for."""

    def __init__(self, root: Path) -> None:
        """Keep everything below `root`."""
        self._root = root
        self._built: dict[str, Patient] = {}

    def get(self, name: str) -> Patient:
        """Return a healthy checkpoint, built when it is not there yet."""
        if name not in self._built:
            bed = _Bed(self, self._root / name)
            bed.folder.mkdir(parents=True)
            self._built[name] = load_healthy()[name].build(bed)
        return self._built[name]

    @contextmanager
    def copy(self, name: str) -> Iterator[Patient]:
        """Lend a copy of a healthy checkpoint; what its arguments name inside it is the copy's."""
        patient = self.get(name)
        with TemporaryDirectory(prefix="mudpuppy-patient-", dir=self._root) as room:
            old, new = self._root / name, Path(room) / name
            shutil.copytree(old, new, symlinks=True)
            moved = {key: _move(value, old, new) for key, value in patient.options.items()}
            yield replace(patient, path=_move(patient.path, old, new), options=moved)


class _Bed:
    """What one builder is given."""

    def __init__(self, ward: Recovery, folder: Path) -> None:
        self.folder = folder
        self.get = ward.get


def _move(value: Any, old: Path, new: Path) -> Any:
    """Return a path below `old` as the same path below `new`, and anything else as it is."""
    if isinstance(value, Path) and value.is_relative_to(old):
        return new / value.relative_to(old)
    return value
