"""Healthy checkpoints and damages by name, gathered from the files of two folders.

A *patient* is a healthy checkpoint and the words with which the doctor is asked about it. A damage
breaks one thing in a copy of a patient, and names the mode of the catalogue (FM01 to FM66) and the
probe that must find it. Builders import torch inside their functions, so that lists stay quick.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A checkpoint, and how the doctor is asked about it."""

    path: Path
    """What `diagnose` is given: a folder or a file, inside `folder` when it was built."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What is asked of it, as fields of `Judging`: `base`, `adapter`, `generate`, `quiz`, ..."""

    def asking(self, **options: Any) -> Patient:
        """Return the same checkpoint with further arguments."""
        return replace(self, options={**self.options, **options})


class Ward(Protocol):
    """What a builder of a healthy checkpoint is given."""

    folder: Path
    """An empty folder of its own."""

    def get(self, name: str) -> Patient:
        """Return another healthy checkpoint, built when it is not there yet; never change it."""


Build = Callable[[Ward], Patient]
Break = Callable[[Patient], Patient | None]


@dataclass(frozen=True, kw_only=True)
class Healthy:
    """A healthy checkpoint that can be built."""

    name: str
    """Unique name, words with dashes: who saved what."""
    build: Build
    """Writes it."""
    notes: tuple[str, ...]
    """Names of probes whose *note* is right here (a note never changes the verdict)."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One thing that is broken."""

    name: str
    """Unique name, words with dashes."""
    patient: str
    """The healthy checkpoint that a copy is made of."""
    mode: str
    """The mode of the catalogue, `FM01` to `FM66`; empty for faults outside of it."""
    probe: str
    """Name of the probe that must find it."""
    also: tuple[str, ...]
    """Probes that may speak as well, because the same damage really is their fault too."""
    apply: Break
    """Breaks it; may return the patient with other arguments."""


_HEALTHY: dict[str, Healthy] = {}
_DAMAGES: dict[str, Damage] = {}


def healthy(name: str, *, notes: tuple[str, ...] = ()) -> Callable[[Build], Build]:
    """Register a builder. The folder given to it is kept; paths it returns lie in it."""

    def mark(build: Build) -> Build:
        _add(_HEALTHY, name, Healthy(name=name, build=build, notes=notes))
        return build

    return mark


def damage(
    name: str, *, patient: str, mode: str, probe: str, also: tuple[str, ...] = ()
) -> Callable[[Break], Break]:
    """Register a damage; the function gets a copy of the patient to break."""

    def mark(apply: Break) -> Break:
        made = Damage(name=name, patient=patient, mode=mode, probe=probe, also=also, apply=apply)
        _add(_DAMAGES, name, made)
        return apply

    return mark


@cache
def load_healthy() -> Mapping[str, Healthy]:
    """Return every healthy checkpoint by name."""
    _import_all("harness.selftest.healthy")
    return _HEALTHY


@cache
def load_damages() -> Mapping[str, Damage]:
    """Return every damage by name.

    Raises:
        ValueError: a damage of a patient that does not exist.
    """
    _import_all("harness.selftest.damages")
    for one in _DAMAGES.values():
        if one.patient not in load_healthy():
            raise ValueError(f"{one.name} damages '{one.patient}', which nobody builds")
    return _DAMAGES


def _import_all(package: str) -> None:
    for info in sorted(pkgutil.iter_modules(importlib.import_module(package).__path__)):
        importlib.import_module(f"{package}.{info.name}")


def _add(known: dict[str, Any], name: str, made: Any) -> None:
    if name in known:
        raise ValueError(f"'{name}' is registered twice")
    known[name] = made
