"""YAML that remembers where things stand, so that an error can name its line.

Differs from plain `yaml.safe_load` in two more ways: `1e-4` is a number, as everybody but YAML 1.1
expects, and a key written twice is an error instead of a silent overwrite.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from mudpuppy.errors import ConfigError

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
    """SafeLoader whose floats are those of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:float"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
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
        ConfigError: it is not YAML, a key stands twice, or an alias contains itself.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines, problems = _walk(node) if node is not None else ({}, [])
        value = None if node is None or problems else loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-02-30
        raise ConfigError([f"is not YAML: {_first_line(error)}"], source=source) from None
    if problems:
        raise ConfigError([f"{source}:{line}: {text}" for line, text in problems])
    return Document(source=source, value=value, lines=lines)


def _first_line(error: yaml.YAMLError | ValueError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem or error.context}"
    return str(error).splitlines()[0]


def _walk(root: yaml.Node) -> tuple[dict[Place, int], list[tuple[int, str]]]:
    """Note the line of every place, and every key that stands twice."""
    lines: dict[Place, int] = {(): root.start_mark.line + 1}
    problems: list[tuple[int, str]] = []
    waiting: list[tuple[yaml.Node, Place, frozenset[int]]] = [(root, (), frozenset())]
    while waiting:
        node, place, above = waiting.pop()
        if id(node) in above:
            problems.append((node.start_mark.line + 1, "an alias contains itself"))
            continue
        for key, mark, child in _children(node):
            inner = (*place, key)
            if inner in lines:
                also = f"'{key}' stands twice (also on line {lines[inner]})"
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
