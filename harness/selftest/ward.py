"""Build healthy checkpoints once, and keep them; hand out copies that may be broken."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.selftest.registry import Patient, load_healthy
from mudpuppy.files import write_json_atomic


class Recovery:
    """A ward that builds each healthy checkpoint when it is first asked for.

    Several processes may share a folder: a lock for each checkpoint lets the second one wait for
    the first. A checkpoint is written in its place, since adapters note where their base lies, and
    is there once its record is; what a killed process left half done has none and is removed.
    """

    def __init__(self, root: Path) -> None:
        """Keep everything below `root`."""
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._built: dict[str, Patient] = {}

    def get(self, name: str) -> Patient:
        """Return a healthy checkpoint, built when it is not there yet.

        Raises:
            KeyError: nobody builds one of that name.
        """
        if name not in self._built:
            one = load_healthy()[name]
            with self._locked(name):
                record = self._root / f"{name}.json"
                if not record.is_file():
                    folder = self._root / name
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir()
                    _write(record, one.build(_Bed(self, folder)))
                self._built[name] = _read(record)
        return self._built[name]

    @contextmanager
    def copy(self, name: str) -> Iterator[Patient]:
        """Lend a copy of a healthy checkpoint; what its arguments name inside it is the copy's."""
        patient = self.get(name)
        with TemporaryDirectory(prefix="patient-", dir=self._root) as room:
            old, new = self._root / name, Path(room) / name
            shutil.copytree(old, new, symlinks=True)
            moved = {key: _move(value, old, new) for key, value in patient.options.items()}
            yield replace(patient, path=_move(patient.path, old, new), options=moved)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self._root / f".{name}.lock").open("a", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


class _Bed:
    """What one builder is given."""

    def __init__(self, ward: Recovery, folder: Path) -> None:
        self.folder = folder
        self.get = ward.get


def _write(record: Path, patient: Patient) -> None:
    """Note where a patient lies and what is asked; options are paths and plain JSON values."""
    options = {
        key: {"path": str(value)} if isinstance(value, Path) else {"value": value}
        for key, value in patient.options.items()
    }
    write_json_atomic(record, {"path": str(patient.path), "options": options})


def _read(record: Path) -> Patient:
    value = json.loads(record.read_text(encoding="utf-8"))
    options = {
        key: Path(one["path"]) if "path" in one else one["value"]
        for key, one in value["options"].items()
    }
    return Patient(path=Path(value["path"]), options=options)


def _move(value: Any, old: Path, new: Path) -> Any:
    """Return a path below `old` as the same path below `new`, and anything else as it is."""
    if isinstance(value, Path) and value.is_relative_to(old):
        return new / value.relative_to(old)
    return value
