"""Command-line flags made from the fields of TrainingConfig, so that both can never differ."""

from __future__ import annotations

import argparse
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import POSITIONAL, flag_of
from mudpuppy.features import METHOD_ALIASES

EARLY_STOPPING_DEFAULT = 3
"""Evaluations without improvement that `--early-stopping` without a number allows."""


SECTIONS = {
    "output": "what is made",
    "epochs": "how long, how fast",
    "early_stopping": "when to stop",
    "gradient_checkpointing": "memory and speed",
    "lora_r": "adapter",
    "beta": "preference, unlearning and reinforcement",
    "quant": "quantisation",
    "max_length": "data",
    "seed": "machine",
}
"""Sections of the help: the first setting of each, and its title."""


def add_training_flags(parser: argparse.ArgumentParser, skip: tuple[str, ...] = ()) -> None:
    """Add a flag for every setting; what is not typed stays out of the namespace."""
    group: Any = parser
    for name, field in TrainingConfig.model_fields.items():
        if name in SECTIONS:
            group = parser.add_argument_group(SECTIONS[name])
        if name not in skip and name not in POSITIONAL:
            _add_flag(group, name, field)


def _add_flag(parser: Any, name: str, field: FieldInfo) -> None:
    """Add one setting in the form its type asks for."""
    kind = _plain_type(field.annotation)
    text = (field.description or "").replace("\n", " ").replace("%", "%%")
    if not field.is_required() and field.default not in (None, ()) and kind is not bool:
        shown = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        text += f" (default: {shown})"
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text, "dest": name}
    if name == "early_stopping":
        parser.add_argument(
            flag_of(name), nargs="?", const=EARLY_STOPPING_DEFAULT, metavar="N", **options
        )
    elif kind is bool:
        _add_switch(parser, name, field.default, options)
    elif get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        others = METHOD_ALIASES if name == "method" else ()
        parser.add_argument(
            flag_of(name), choices=[*choices, *others], metavar="|".join(choices), **options
        )
    elif get_origin(kind) is tuple:
        words = get_args(get_args(kind)[0])
        metavar = "|".join(map(str, words)) if words else "NAME"
        parser.add_argument(flag_of(name), nargs="+", metavar=metavar, **options)
    else:
        # The text goes to pydantic as it was typed, so that flags and YAML give the same errors.
        metavar = {int: "N", float: "X", Path: "DIR"}.get(kind, "TEXT")
        parser.add_argument(flag_of(name), metavar=metavar, **options)


def _add_switch(parser: Any, name: str, default: bool | None, options: dict[str, Any]) -> None:
    """Add `--x` and `--no-x`; the help shows both only where it is not off to begin with."""
    off = {**options, "help": argparse.SUPPRESS}
    if default is False:
        parser.add_argument(flag_of(name), action="store_true", **options)
        parser.add_argument(f"--no-{flag_of(name)[2:]}", action="store_false", **off)
        return
    text = options["help"] + (" (default: on)" if default else "")
    both = argparse.BooleanOptionalAction
    parser.add_argument(flag_of(name), action=both, **{**options, "help": text})


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
