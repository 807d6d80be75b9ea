"""The tools with which damages break things: JSON keys, tensors, bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Tensors = dict[str, Any]
"""torch tensors by name."""


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    value = json.loads(path.read_text(encoding="utf-8"))
    for key, new in changes.items():
        if new is None:
            value.pop(key, None)
        else:
            value[key] = new
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def find_weights(folder: Path) -> Path:
    """Return the one safetensors file of a folder.

    Raises:
        ValueError: there is none, or more than one.
    """
    (path,) = folder.glob("*.safetensors")
    return path


def edit_tensors(folder: Path, change: Callable[[Tensors], Mapping[str, Any] | None]) -> None:
    """Load the one weights file of a folder, change the tensors or return others, and save them."""
    from safetensors.torch import load_file, save_file

    path = find_weights(folder)
    tensors = load_file(path)
    made = change(tensors)
    kept = tensors if made is None else made
    save_file({k: v.contiguous().clone() for k, v in kept.items()}, path, {"format": "pt"})


def rename_tensors(folder: Path, old: str, new: str) -> None:
    """Replace a part of every tensor name.

    Raises:
        ValueError: it occurs in none, so that nothing would be damaged.
    """

    def change(tensors: Tensors) -> Tensors:
        _require(tensors, old)
        return {key.replace(old, new): value for key, value in tensors.items()}

    edit_tensors(folder, change)


def drop_tensors(folder: Path, part: str) -> None:
    """Leave out the tensors in whose names `part` occurs.

    Raises:
        ValueError: it occurs in none, so that nothing would be damaged.
    """

    def change(tensors: Tensors) -> Tensors:
        _require(tensors, part)
        return {key: value for key, value in tensors.items() if part not in key}

    edit_tensors(folder, change)


def _require(tensors: Tensors, part: str) -> None:
    if not any(part in key for key in tensors):
        raise ValueError(f"no tensor has '{part}' in its name, such as {next(iter(tensors))}")


def cut_file(path: Path, share: float) -> None:
    """Keep the first share of a file."""
    with path.open("rb+") as handle:
        handle.truncate(int(path.stat().st_size * share))
