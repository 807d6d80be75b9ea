"""The command `mud-puppy presets`: which there are, or what one sets and where that comes from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from tabulate import tabulate

from mudpuppy.config_check import flag_of
from mudpuppy.presets.loader import Preset, find_preset, load_presets

DESCRIPTION = "List the presets, or show what one sets and where each value comes from."
EXAMPLES = """\
examples:
  mud-puppy presets
  mud-puppy presets lora-14b-16gb
  mud-puppy ./model data.jsonl --preset lora-14b-16gb --epochs 1 --output out
  mud-puppy estimate ./model --preset lora-14b-16gb --memory 16GB
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the arguments of the command."""
    parser.epilog = EXAMPLES
    parser.add_argument("name", nargs="?", metavar="NAME", help="the preset to show; all without")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    """Run the parsed command and return its exit code.

    Raises:
        UsageError: there is no preset of that name.
    """
    shown = list(load_presets().values()) if args.name is None else [find_preset(args.name)]
    if args.format == "json":
        print(json.dumps({one.name: _as_json(one) for one in shown}, indent=2))
    elif args.name is None:
        rows = [[one.name, one.shape, f"{one.memory} GB", one.what] for one in shown]
        print(tabulate(rows, headers=["preset", "model", "memory", "what"]))
    else:
        print("\n".join(_describe(shown[0])))
    return 0


def _describe(preset: Preset) -> Iterator[str]:
    """Yield what a preset sets, as flags, and where each value comes from."""
    yield f"{preset.name}: {preset.what} (models like {preset.shape}, {preset.memory} GB)"
    yield ""
    rows = [[_typed(key, value), preset.reasons[key]] for key, value in preset.settings.items()]
    yield tabulate(rows, headers=["setting", "from"], disable_numparse=True)
    yield ""
    yield "A flag or a key of --config that says otherwise wins."


def _typed(field: str, value: Any) -> str:
    """Return a setting as it would be typed."""
    if isinstance(value, bool):
        return flag_of(field) if value else f"--no-{flag_of(field)[2:]}"
    if isinstance(value, float):
        return f"{flag_of(field)} {value:g}"
    words = value if isinstance(value, list) else [value]
    return " ".join([flag_of(field), *map(str, words)])


def _as_json(preset: Preset) -> dict[str, Any]:
    settings = {
        key: {"value": value, "from": preset.reasons[key]} for key, value in preset.settings.items()
    }
    return {
        "what": preset.what,
        "shape": preset.shape,
        "memory_gib": preset.memory,
        "settings": settings,
    }
