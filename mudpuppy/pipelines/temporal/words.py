"""Flags of the temporal commands: underscores, as the document writes them, or dashes."""

from __future__ import annotations

import argparse
from typing import Any


def add_flag(parser: Any, name: str, **options: Any) -> None:
    """Add `--name_of_it`, which `--name-of-it` means, too; the help shows the first."""
    words = [f"--{name}"]
    if "_" in name:
        words.append(f"--{name.replace('_', '-')}")
    parser.add_argument(*words, dest=name, **options)


def count(text: str) -> int:
    """Return a positive whole number that was typed.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1 is expected, got {text!r}")
    return int(text)
