"""Read the presets from their file: names, settings, and where each value comes from. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mudpuppy.errors import UsageError, near_names
from mudpuppy.yamlfile import read_document

PRESETS_PATH = Path(__file__).with_name("presets.yaml")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings that belong together."""

    name: str
    """What `--preset` takes."""
    what: str
    """In a sentence."""
    shape: str
    """Name of the model's shape that the memory is predicted for."""
    memory: int
    """Memory of the device in GiB, of which a run leaves a tenth free."""
    settings: Mapping[str, Any]
    """Values by field names of `TrainingConfig`."""
    reasons: Mapping[str, str]
    """Where each value comes from, in words."""


@cache
def _read() -> Any:
    text = PRESETS_PATH.read_text(encoding="utf-8")
    return read_document(text, PRESETS_PATH.name).value


@cache
def load_presets() -> Mapping[str, Preset]:
    """Return every preset by its name, in the order of the file.

    Raises:
        ConfigError: the file is not YAML.
        KeyError: a value names a source that the file does not have.
    """
    held = _read()
    return {
        name: Preset(
            name=name,
            what=one["what"],
            shape=one["shape"],
            memory=one["memory"],
            settings={key: value for key, (value, _) in one["settings"].items()},
            reasons={
                key: _spell(held["sources"], said) for key, (_, said) in one["settings"].items()
            },
        )
        for name, one in held["presets"].items()
    }


def _spell(sources: Mapping[str, str], said: str) -> str:
    """Return where a value comes from, with its source written out."""
    source, _, why = said.partition(":")
    return f"{sources[source]}:{why}" if why else sources[source]


@cache
def load_shapes() -> Mapping[str, Mapping[str, Any]]:
    """Return what config.json says of each shape that memory is predicted for."""
    shapes: Mapping[str, Mapping[str, Any]] = _read()["shapes"]
    return shapes


def find_preset(name: str) -> Preset:
    """Return the preset of a name.

    Raises:
        UsageError: there is none of that name.
    """
    presets = load_presets()
    if name not in presets:
        raise UsageError(
            f"there is no preset {name}{near_names(name, presets)}", hint="mud-puppy presets"
        )
    return presets[name]


def settings_of(name: Any) -> Mapping[str, Any]:
    """Return the settings of a preset; nothing where there is none of that name."""
    found = load_presets().get(name) if isinstance(name, str) else None
    return {} if found is None else found.settings
