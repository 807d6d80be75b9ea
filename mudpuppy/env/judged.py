"""What a trap is, and what it says when a machine is in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mudpuppy.env.facts import Facts

Severity = Literal["blocks", "warns", "note"]
"""`blocks`: do not train before it is mended; `warns`: it may fail or be wrong; `note`: to know."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What one trap says of one machine."""

    severity: Severity
    """How bad it is."""
    what: str
    """What was found, with the values it was found by."""
    do: str
    """What to type, or what the engine does by itself."""


@dataclass(frozen=True, kw_only=True)
class Trap:
    """A way in which machines, drivers and settings go wrong together."""

    code: str
    """Stable code, such as `MP-T01`."""
    name: str
    """Stable name, such as `wrong-wheel`."""
    why: str
    """What happens to those who fall into it."""
    sources: tuple[str, ...]
    """Where that is known from."""
    judge: Callable[[Facts], Judgement | None]
    """Look at the facts; None where the machine is not in the trap."""


@dataclass(frozen=True, kw_only=True)
class EnvFinding:
    """A trap that a machine is in."""

    code: str
    """Code of the trap."""
    name: str
    """Name of the trap."""
    severity: Severity
    """How bad it is."""
    what: str
    """What was found."""
    why: str
    """What it leads to."""
    sources: tuple[str, ...]
    """Where that is known from."""
    do: str
    """What to type, or what the engine does by itself."""

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain JSON types."""
        return asdict(self)


def blocks(what: str, do: str) -> Judgement:
    """Return a judgement that says: do not train like this."""
    return Judgement(severity="blocks", what=what, do=do)


def warns(what: str, do: str) -> Judgement:
    """Return a judgement that says: this may fail or be wrong."""
    return Judgement(severity="warns", what=what, do=do)


def notes(what: str, do: str) -> Judgement:
    """Return a judgement that says: good to know."""
    return Judgement(severity="note", what=what, do=do)
