"""What a repaired copy will hold: every file kept, rewritten, left out or added, and why."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.evidence.files.headers import read_weight_file
from harness.evidence.files.jsonfile import UnreadableJson, limit_of, read_object
from harness.facts.checkpoint import WeightFile


class NotCertain(Exception):
    """A repair that could be wrong and is not made; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that is different in the copy."""

    repair: str
    """Name of the repair."""
    file: str
    """File, relative to the examined path."""
    what: str
    """What is different, in a clause."""


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """A safetensors file whose tensors get other names; its data is copied as it is."""

    names: Mapping[str, str]
    """New name by old name; tensors that are not in it are left out."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A torch archive that is written as safetensors."""

    source: str
    """The archive."""
    num_bytes: int
    """Bytes of its tensors, which may share storages and be more than the archive's."""


Content = dict[str, Any] | Renamed | Converted
"""A JSON object, or how a file of weights is made."""


class Draft:
    """A folder as the copy will hold it; nothing is written here."""

    def __init__(self, folder: Path, names: Iterable[str], place: str = ".") -> None:
        """Start with every file as it is.

        Args:
            folder: the folder that is repaired.
            names: its files.
            place: the folder relative to the examined path.
        """
        self.folder = folder
        self.place = place
        self.repair = ""
        self.changes: list[Change] = []
        self.contents: dict[str, Content | None] = {}
        self._names = set(names)

    @property
    def names(self) -> tuple[str, ...]:
        """The files that the copy will have."""
        dropped = {name for name, content in self.contents.items() if content is None}
        return tuple(sorted((self._names | self.contents.keys()) - dropped))

    def note(self, file: str, what: str) -> None:
        """Say what is different in a file."""
        path = file if self.place == "." else f"{self.place}/{file}"
        self.changes.append(Change(repair=self.repair, file=path, what=what))

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the settings of a file as they stand in the draft, to be changed and put back.

        Raises:
            NotCertain: it cannot be read.
        """
        drafted = self.contents.get(name)
        if isinstance(drafted, dict):
            return copy.deepcopy(drafted)
        try:
            return read_object(self.folder / name, limit_of(name))
        except UnreadableJson as problem:
            raise NotCertain(f"{name} cannot be read: {problem}") from None

    def put_json(self, name: str, value: dict[str, Any], what: str) -> None:
        """Write settings."""
        self.contents[name] = value
        self.note(name, what)

    def drop(self, name: str, why: str) -> None:
        """Leave a file out."""
        self.contents[name] = None
        self.note(name, f"left out: {why}")

    def read_weights(self, name: str) -> WeightFile:
        """Return the header of a weights file, with the names that the draft gives its tensors.

        Raises:
            NotCertain: the file is not whole.
        """
        found = read_weight_file(self.folder / name, name)
        if found.problem:
            raise NotCertain(f"{name} is not whole ({found.detail})")
        return found

    def tensor_names(self, name: str) -> dict[str, str]:
        """Return the drafted names of a file's tensors by the names in the file."""
        drafted = self.contents.get(name)
        if isinstance(drafted, Renamed):
            return dict(drafted.names)
        return {tensor.name: tensor.name for tensor in self.read_weights(name).tensors}

    def rename_tensors(self, name: str, names: Mapping[str, str], what: str) -> None:
        """Give the tensors of a file other names.

        Raises:
            NotCertain: two tensors would get the same name.
        """
        if len(set(names.values())) < len(names):
            raise NotCertain(f"two tensors of {name} would get the same name")
        self.contents[name] = Renamed(names=names)
        self.note(name, what)
