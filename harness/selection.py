"""Choose cells by words: a glob on the name, the id, the number, or a setting (`method=qlora`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from harness.matrix import Cell
from mudpuppy.errors import UsageError, near_names


@dataclass(frozen=True)
class Selection:
    """Which cells run, and why the others do not."""

    chosen: tuple[Cell, ...]
    """Cells to run, in matrix order."""
    left_out: tuple[tuple[Cell, str], ...]
    """The other cells, each with the reason."""


def select_cells(
    cells: Sequence[Cell], select: Sequence[str] = (), ignore: Sequence[str] = ()
) -> Selection:
    """Split cells by words.

    Args:
        cells: the whole matrix.
        select: words of which one must match; with none, every cell matches.
        ignore: words of which none may match.

    Raises:
        UsageError: a word that matches no cell at all (with the near names), or nothing is left.
    """
    problems = [text for word in (*select, *ignore) for text in _complaints(word, cells)]
    if problems:
        hint = "a word is a glob on names, an id, a number, or setting=value; see the list command"
        raise UsageError("\n".join(problems), hint=hint)
    chosen: list[Cell] = []
    left_out: list[tuple[Cell, str]] = []
    for cell in cells:
        reason = _why_not(cell, select, ignore)
        if reason is None:
            chosen.append(cell)
        else:
            left_out.append((cell, reason))
    if not chosen:
        raise UsageError("nothing is left to run: everything selected is also ignored")
    return Selection(chosen=tuple(chosen), left_out=tuple(left_out))


def find_cell(cells: Sequence[Cell], word: str) -> Cell:
    """Return the one cell that a word names.

    Raises:
        UsageError: it names none (with the near names) or several.
    """
    exact = [cell for cell in cells if cell.name == word]
    found = exact or list(select_cells(cells, [word]).chosen)
    if len(found) > 1:
        names = ", ".join(cell.name for cell in found[:5])
        raise UsageError(f"'{word}' names {len(found)} cells: {names}", hint="give one name")
    return found[0]


def matches(cell: Cell, word: str) -> bool:
    """Return whether a word names a cell."""
    key, equals, value = word.partition("=")
    if equals:
        return key in cell.config and fnmatchcase(_text(cell.config[key]), value.lower())
    if word.isdecimal() and int(word) == cell.number:
        return True
    return fnmatchcase(cell.name, word) or fnmatchcase(cell.cell_id, word)


def _text(value: Any) -> str:
    """Return a setting as people type it: `true`, `none`, `bf16`, `16`."""
    return str(value).lower()


def _why_not(cell: Cell, select: Sequence[str], ignore: Sequence[str]) -> str | None:
    if select and not any(matches(cell, word) for word in select):
        return "left out by --select " + " ".join(select)
    hit = next((word for word in ignore if matches(cell, word)), None)
    return None if hit is None else f"left out by --ignore {hit}"


def _complaints(word: str, cells: Sequence[Cell]) -> Iterator[str]:
    """Yield what is wrong with a word that matches nothing."""
    if any(matches(cell, word) for cell in cells):
        return
    key, equals, _ = word.partition("=")
    settings = sorted({name for cell in cells for name in cell.config})
    if equals and key not in settings:
        yield f"'{word}': unknown setting '{key}'{near_names(key, settings)}"
    elif equals:
        seen = sorted({_text(cell.config[key]) for cell in cells if key in cell.config})
        yield f"'{word}' matches no cell; {key} is one of: {', '.join(seen[:12])}"
    else:
        yield f"'{word}' matches no cell{near_names(word, [cell.name for cell in cells])}"
