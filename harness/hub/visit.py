"""Lay out what was named on the hub, and have reports speak of it, not of temporary folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from harness.findings import agree
from harness.hub.names import is_hub_name, parse_hub_name

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Places:
    """What was asked for, as paths of this machine."""

    paths: tuple[str | Path | None, ...]
    """One for each word."""
    names: dict[str, str] = field(default_factory=dict)
    """Names on the hub by the folders that stand for them."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Revision and what was left out, by name on the hub."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was not fetched, in a sentence for each place."""
        return tuple(
            f"{name}: {agree(len(left), 'file was', 'files were')} not looked at ({left[0]})"
            for name, fact in self.facts.items()
            if (left := fact["not_fetched"])
        )

    def speak(self, value: _T) -> _T:
        """Return a result in which names on the hub stand where temporary folders stood."""
        return _replace(value, self.names) if self.names else value


@contextmanager
def at_hand(*words: str | Path | None, progress: Callable[[str], None]) -> Iterator[Places]:
    """Lay out every word that names a place on the hub, until the end of the block.

    Raises:
        HubError: the hub could not be asked.
        UsageError: a name is none, or the hub has nothing of it.
    """
    with ExitStack() as stack:
        paths: list[str | Path | None] = []
        places = Places(paths=())
        for word in words:
            if word is None or not is_hub_name(word):
                paths.append(word)
                continue
            from harness.hub.mirror import open_mirror  # what speaks HTTP is slow to import

            name = parse_hub_name(str(word))
            mirror = stack.enter_context(open_mirror(name, progress))
            paths.append(mirror.path)
            places.names[str(mirror.path)] = str(name)
            places.facts[str(name)] = {
                "revision": mirror.revision,
                "not_fetched": list(mirror.left_out),
            }
        yield replace(places, paths=tuple(paths))


def _replace(value: Any, names: dict[str, str]) -> Any:
    """Return a value of dataclasses, containers and texts with other texts."""
    if isinstance(value, str) and type(value) is str:
        for old, new in names.items():
            value = value.replace(old, new)
        return value
    if isinstance(value, dict):
        return {_replace(k, names): _replace(v, names) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replace(one, names) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        changes = {one.name: _replace(getattr(value, one.name), names) for one in fields(value)}
        return replace(value, **changes)
    return value
