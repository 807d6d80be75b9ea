"""Command-line flags made from the fields of TrainingConfig, so that both can never differ."""

from __future__ import annotations

import argparse
import types
from collections.abc import Iterator
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import POSITIONAL, flag_of
from mudpuppy.errors import near_names, printable
from mudpuppy.features import METHOD_ALIASES

EARLY_STOPPING_DEFAULT = 3
"""Evaluations without improvement that `--early-stopping` without a number allows."""


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


def _flags_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the flags of a parser and its subcommands, whose unknown flags argparse hands up."""
    for action in parser._actions:
        yield from action.option_strings
        for child in action.choices.values() if isinstance(action.choices, dict) else ():
            if isinstance(child, argparse.ArgumentParser):
                yield from _flags_of(child)


def add_training_flags(parser: argparse.ArgumentParser, skip: tuple[str, ...] = ()) -> None:
    """Add a flag for every setting; what is not typed stays out of the namespace."""
    for name, field in TrainingConfig.model_fields.items():
        if name in skip or name in POSITIONAL:
            continue
        _add_flag(parser, name, field)


def _add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    """Add one setting in the form its type asks for."""
    kind = _plain_type(field.annotation)
    text = (field.description or "").replace("\n", " ").replace("%", "%%")
    if not field.is_required() and field.default is not None and kind is not bool:
        shown = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        text += f" (default: {shown})"
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text, "dest": name}
    if name == "early_stopping":
        parser.add_argument(
            flag_of(name), nargs="?", const=EARLY_STOPPING_DEFAULT, metavar="N", **options
        )
    elif kind is bool:
        parser.add_argument(flag_of(name), action=argparse.BooleanOptionalAction, **options)
    elif get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        others = METHOD_ALIASES if name == "method" else ()
        parser.add_argument(
            flag_of(name), choices=[*choices, *others], metavar="|".join(choices), **options
        )
    elif get_origin(kind) is tuple:
        parser.add_argument(flag_of(name), nargs="+", metavar="NAME", **options)
    else:
        # The text goes to pydantic as it was typed, so that flags and YAML give the same errors.
        metavar = {int: "N", float: "X"}.get(kind, "PATH" if name == "output" else "TEXT")
        parser.add_argument(flag_of(name), metavar=metavar, **options)


def _plain_type(annotation: Any) -> Any:
    """Return the type without `Annotated` and without `| None`."""
    if get_origin(annotation) in (types.UnionType, Union):
        (annotation,) = [part for part in get_args(annotation) if part is not type(None)]
    if hasattr(annotation, "__metadata__"):
        return get_args(annotation)[0]
    return annotation


def typed_settings(namespace: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were typed, by field name."""
    known = set(TrainingConfig.field_names())
    return {name: value for name, value in vars(namespace).items() if name in known}
