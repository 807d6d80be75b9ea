"""Flags of the temporal commands: underscores, as the document writes them, or dashes."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

from mudpuppy.parser import FriendlyParser


def add_flag(parser: Any, name: str, **options: Any) -> None:
    """Add `--name_of_it`, which `--name-of-it` means, too; the help shows the first."""
    words = [f"--{name}"]
    if "_" in name:
        words.append(f"--{name.replace('_', '-')}")
    parser.add_argument(*words, dest=name, **options)


def run_command(name: str, module: str, words: Sequence[str]) -> int:
    """Run a command that these ones are another face of, and return its exit code.

    Args:
        name: what was typed, for messages.
        module: where the other command is.
        words: what it is told.
    """
    command: Any = importlib.import_module(module)
    parser = FriendlyParser(prog=f"mud-puppy temporal {name}", allow_abbrev=False)
    command.add_arguments(parser)
    code: int = command.run(parser.parse_args(list(words)))
    return code


def count(text: str) -> int:
    """Return a positive whole number that was typed.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1 is expected, got {text!r}")
    return int(text)
