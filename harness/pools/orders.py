"""Cells and their results on the way between a driver and the agents of other hosts."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from harness.environment import PROJECT
from harness.matrix import Cell
from scenarios.schema import Expectation

LARGEST_FILE = 4 * 2**20
"""Bytes of a file that is sent back; checkpoints stay where they were made."""
HERE = "<project>/"
"""Stands for the project's folder, which lies elsewhere on another host."""


def encode_order(cell: Cell, attempt: int) -> str:
    """Return a cell as text; paths inside the project are told relative to it."""
    content = {one.name: getattr(cell, one.name) for one in fields(Cell)}
    content["expect"] = cell.expect.model_dump(mode="json")
    content["config"] = {name: _relative(value) for name, value in cell.config.items()}
    return json.dumps({"cell": content, "attempt": attempt})


def decode_order(text: str) -> tuple[Cell, int]:
    """Return the cell and its attempt, with the paths of this host."""
    content = json.loads(text)
    cell = content["cell"]
    cell["expect"] = Expectation.model_validate(cell["expect"])
    cell["config"] = {name: _absolute(value) for name, value in cell["config"].items()}
    cell["needs"] = tuple(cell["needs"])
    return Cell(**cell), int(content["attempt"])


def pack_files(folder: Path) -> dict[str, str]:
    """Return the small files right inside a cell's folder, but not its result."""
    return {
        path.name: base64.b64encode(path.read_bytes()).decode("ascii")
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "result.json" and path.stat().st_size <= LARGEST_FILE
    }


def unpack_files(packed: Mapping[str, str]) -> dict[str, bytes]:
    """Return the files that were packed; names that would leave the folder are left out."""
    plain = {name: text for name, text in packed.items() if Path(name).name == name}
    return {name: base64.b64decode(text) for name, text in plain.items()}


def _relative(value: Any) -> Any:
    prefix = f"{PROJECT}/"
    is_inside = isinstance(value, str) and value.startswith(prefix)
    return HERE + value.removeprefix(prefix) if is_inside else value


def _absolute(value: Any) -> Any:
    is_inside = isinstance(value, str) and value.startswith(HERE)
    return f"{PROJECT}/{value.removeprefix(HERE)}" if is_inside else value
