"""An argument parser that names the near flags for an unknown one; imports nothing slow."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NoReturn

from mudpuppy.errors import near_names, printable


class FriendlyParser(argparse.ArgumentParser):
    """An ArgumentParser that names the near flags for an unknown one."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and refuse unknown flags with the near names (exit code 2)."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = dict.fromkeys(_flags_of(self))
            shown = [
                f"{word}{near_names(word.partition('=')[0], known)}"
                for word in unknown
                if word.startswith("-")
            ] or unknown
            self.error(f"unrecognized arguments: {', '.join(shown)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Print one line about the mistake and one about the help, and exit with 2."""
        text = printable(f"{self.prog}: error: {message}\n  hint: {self.prog} --help\n")
        self.exit(2, text)


def wide_help(prog: str) -> argparse.HelpFormatter:
    """Return what formats the help: lines as they were written, flags in a wide column."""
    return argparse.RawDescriptionHelpFormatter(prog, width=100, max_help_position=30)


def _flags_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the flags of a parser and its subcommands, whose unknown flags argparse hands up."""
    for action in parser._actions:
        yield from action.option_strings
        for child in action.choices.values() if isinstance(action.choices, dict) else ():
            if isinstance(child, argparse.ArgumentParser):
                yield from _flags_of(child)
