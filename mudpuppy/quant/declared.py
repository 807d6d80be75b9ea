"""What a folder's config.json declares of its quantisation, read for everybody alike. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mudpuppy.errors import ModelError, shown
from mudpuppy.quant.checks import refuse
from mudpuppy.quant.codes import UNKNOWN_SCHEME

MOST_BLOCK = 1 << 16
"""Columns that may share a scale."""
_KEY = "quantization_config"


def read_settings(folder: Path) -> dict[str, Any]:
    """Return config.json of a model folder.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ModelError(f"{folder}: config.json cannot be read: {reason}") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{folder}: config.json is no object")
    return settings


def find_declared(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `quantization_config` of a config.json, also that of its text part.

    Args:
        folder: for messages.
        settings: what config.json holds.

    Returns:
        It, with a `quant_method` that is a text or absent; empty where nothing is declared.

    Raises:
        QuantisedModelError: MP-Q01, it is no object, or its method is no text.
    """
    for part in (settings, settings.get("text_config")):
        found = part.get(_KEY) if isinstance(part, dict) else None
        if found is None or found == {}:
            continue
        where = f"{folder}/config.json"
        if not isinstance(found, dict):
            raise refuse(UNKNOWN_SCHEME, where, f"{_KEY} is no object: {shown(found)}")
        method = found.get("quant_method")
        if method is not None and not isinstance(method, str):
            raise refuse(UNKNOWN_SCHEME, where, f"the quant_method {shown(method)} is not known")
        _require_one_width(where, found)
        return found
    return {}


def _require_one_width(where: str, declared: Mapping[str, Any]) -> None:
    """Refuse what bitsandbytes never writes: both of its widths, or one that is neither yes nor no.

    Raises:
        QuantisedModelError: MP-Q01.
    """
    widths = {key: declared.get(key) for key in ("load_in_4bit", "load_in_8bit")}
    for key, value in widths.items():
        if value is not None and not isinstance(value, bool):
            raise refuse(UNKNOWN_SCHEME, where, f"{key} is {shown(value)}, not true or false")
    if all(widths.values()):
        raise refuse(UNKNOWN_SCHEME, where, f"both {' and '.join(widths)} are true")


def require_readable(folder: Path) -> None:
    """Refuse a declaration that no reader takes, before any other file of the folder is opened.

    Raises:
        QuantisedModelError: MP-Q01.
    """
    try:
        settings = read_settings(folder)
    except ModelError:
        return  # whoever opens the model says what is wrong with the file itself
    find_declared(folder, settings)


def read_folder(folder: Path) -> dict[str, Any]:
    """Return what the config.json of a folder declares; nothing where there is no such file.

    Raises:
        ModelError: the file is damaged, or as `find_declared` says.
    """
    if not (folder / "config.json").is_file():
        return {}  # whoever opens the model says what is missing
    return find_declared(folder, read_settings(folder))


def exchange(config: Any, declared: Mapping[str, Any] | None) -> None:
    """Exchange what a live config says of its quantisation, also in its text part."""
    for part in (config, config.get_text_config()):
        if hasattr(part, _KEY):
            delattr(part, _KEY)
    if declared is not None:
        setattr(config, _KEY, dict(declared))
