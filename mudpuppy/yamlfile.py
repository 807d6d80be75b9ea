"""YAML that remembers where things stand, so that an error can name its line.

Differs from plain `yaml.safe_load` in more ways: `1e-4` is a number, as everybody but YAML 1.1
expects; a date is a text; a key written twice is an error instead of a silent overwrite; and what
is nested or repeated by aliases without measure is refused before it is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mudpuppy.errors import ConfigError, clip, shown

MAX_BYTES = 1_000_000
"""Largest file of settings that is read."""
MAX_NODES = 100_000
"""Most keys and values of a document, those that aliases repeat included."""

Place = tuple[str | int, ...]
"""Keys and indices from the top of the document, such as `("scenarios", 3, "config")`."""

_FLOAT = re.compile(
    r"""^(?: [-+]?(?:[0-9]+)\.[0-9]*(?:[eE][-+]?[0-9]+)?
          | [-+]?[0-9]+[eE][-+]?[0-9]+
          | [-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?
          | [-+]?\.(?:inf|Inf|INF)
          | \.(?:nan|NaN|NAN) )$""",
    re.VERBOSE,
)


class _Loader(yaml.SafeLoader):
    """SafeLoader whose numbers are those of YAML 1.2, and whose dates are texts."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Read `010` as ten: to YAML 1.1 it is eight, and `1:30` is ninety."""
        bases = {"0x": 16, "0o": 8}
        return int(node.value, bases.get(node.value[:2], 10))


_INT = re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_REPLACED = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("float", "int", "timestamp"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag not in _REPLACED]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


@dataclass(frozen=True)
class Document:
    """A YAML document: its value and the line of every key and item."""

    source: str
    """Name of the file, for messages."""
    value: Any
    """The plain Python value."""
    lines: dict[Place, int]
    """1-based line of each place."""

    def where(self, place: Place) -> str:
        """Return `file:line` of a place, or of the nearest thing around it that exists."""
        while place and place not in self.lines:
            place = place[:-1]
        return f"{self.source}:{self.lines.get(place, 1)}"


def read_document(text: str, source: str) -> Document:
    """Parse one YAML document.

    Raises:
        ConfigError: it is not YAML, nested too deeply, a key stands twice or is no text, an alias
            contains itself, or aliases repeat too much.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines, problems = _walk(node) if node is not None else ({}, [])
        value = None if node is None or problems else loader.construct_document(node)
    except RecursionError:
        raise ConfigError(["is nested too deeply"], source=source) from None
    except (yaml.YAMLError, *_MISTAGGED) as error:
        raise ConfigError([f"is not YAML: {_first_line(error)}"], source=source) from None
    if problems:
        raise ConfigError([f"{source}:{line}: {text}" for line, text in problems])
    return Document(source=source, value=value, lines=lines)


_MISTAGGED = (ValueError, KeyError, AttributeError, TypeError, IndexError, OverflowError)
"""What PyYAML raises for a value that its tag does not fit, such as `!!int abc` or `!!bool x`."""


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a `--config` file; nothing is checked but its form.

    Raises:
        ConfigError: the file is missing, is no regular file, is not YAML, or is not a mapping; or a
            setting stands in it twice, also as `max-steps` beside `max_steps`.
    """
    source = str(path)
    values = read_document(_read_text(path), source).value
    if values is None:
        return {}
    if not isinstance(values, dict):
        found = f"expected settings as 'key: value' lines, found {type(values).__name__}"
        raise ConfigError([found], source=source)
    settings: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_") if isinstance(key, str) else shown(key)
        if name in settings:
            twice = f"'{clip(name)}' stands twice, once with '-' and once with '_'"
            raise ConfigError([twice], source=source, hint="keep one of them")
        settings[name] = value
    return settings


def find_lines(path: Path) -> dict[str, int]:
    """Return the line of every setting of a `--config` file that `read_settings` has read."""
    lines = read_document(_read_text(path), str(path)).lines
    return {str(place[0]).replace("-", "_"): n for place, n in lines.items() if len(place) == 1}


def _read_text(path: Path) -> str:
    """Read a small regular file; a pipe or a device might never end."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(["is no regular file"], source=str(path))
        with path.open("rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ConfigError([f"is larger than {MAX_BYTES:,} bytes"], source=str(path))
        return raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError([f"cannot be read: {reason}"], source=str(path)) from None


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        problem = clip(str(error.problem or error.context))
        return f"line {error.problem_mark.line + 1}: {problem}"
    if isinstance(error, yaml.YAMLError | ValueError):
        return clip(str(error).partition("\n")[0])
    return f"a value does not fit its tag ({type(error).__name__})"


def _walk(root: yaml.Node) -> tuple[dict[Place, int], list[tuple[int, str]]]:
    """Note the line of every place, and every key that stands twice."""
    lines: dict[Place, int] = {(): root.start_mark.line + 1}
    problems: list[tuple[int, str]] = []
    waiting: list[tuple[yaml.Node, Place, frozenset[int]]] = [(root, (), frozenset())]
    while waiting:
        node, place, above = waiting.pop()
        if len(lines) > MAX_NODES:
            problems.append((node.start_mark.line + 1, f"more than {MAX_NODES:,} keys and values"))
            break
        if id(node) in above:
            problems.append((node.start_mark.line + 1, "an alias contains itself"))
            continue
        if isinstance(node, yaml.MappingNode) and any(
            not isinstance(key, yaml.ScalarNode) for key, _ in node.value
        ):
            problems.append((node.start_mark.line + 1, "a key is no plain text"))
            continue
        for key, mark, child in _children(node):
            inner = (*place, key)
            if inner in lines:
                also = f"'{clip(str(key))}' stands twice (also on line {lines[inner]})"
                problems.append((mark.line + 1, also))
                continue
            lines[inner] = mark.line + 1
            waiting.append((child, inner, above | {id(node)}))
    return lines, problems


def _children(node: yaml.Node) -> Iterator[tuple[str | int, yaml.Mark, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            yield str(key.value), key.start_mark, child
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield index, child.start_mark, child
