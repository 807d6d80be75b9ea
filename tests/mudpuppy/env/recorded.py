"""The machines of `machines/`, by name."""

import json
from pathlib import Path

from mudpuppy.env.facts import Facts

FOLDER = Path(__file__).parent / "machines"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def machine(name: str) -> Facts:
    return Facts.from_json(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
