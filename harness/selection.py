"""Choose cells by words: a glob, an id, a number, a setting (`method=qlora`), or how it ended last.

`failed`, `crashed`, `passed`, `new` and `slow` ask the history; a cell of that name has precedence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from harness.findings import Status
from harness.history_rows import BAD, LastResult
from harness.matrix import Cell
from mudpuppy.errors import UsageError, near_names

AND = ","
"""Joins words of which all must match; several options are alternatives."""
LAST_WORDS = {
    "failed": "its last result was a failure or a crash",
    "crashed": "its last result was a crash, a timeout or out of memory",
    "passed": "its last result was as expected",
    "new": "it has no result yet",
    "slow": "it is among the slowest tenth of those with a result",
}
"""Words that ask the history, and what each means of a cell."""
SLOW_SHARE = 10
"""One in so many of the cells with a known duration is slow, and at least one."""

Groups = Mapping[str, frozenset[str]]
"""For each word that asks the history, the ids of the cells that it names."""

FEATURE = "feature"
"""Stands for the features that are on: `feature=packing`, `feature=none`."""
EXPECTED = "expect"
"""Stands for what is expected: `expect=rejected`."""


@dataclass(frozen=True)
class Selection:
    """Which cells run, and why the others do not."""

    chosen: tuple[Cell, ...]
    """Cells to run, in matrix order."""
    left_out: tuple[tuple[Cell, str], ...]
    """The other cells, each with the reason."""


AskHistory = Callable[[Iterable[str]], Mapping[str, LastResult]]
"""Returns the last results of cells by their ids; `HistoryQueries.last_results` is one."""


def select_cells(
    cells: Sequence[Cell],
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    ask: AskHistory | None = None,
) -> Selection:
    """Split cells by words.

    Args:
        cells: the whole matrix.
        select: words of which one must match; with none, every cell matches.
        ignore: words of which none may match.
        ask: looks cells up in the history, once and only when a word needs it; without it there
            is no history.

    Raises:
        UsageError: a word that matches no cell at all (with the near names), a word that needs a
            history where there is none, or nothing is left.
    """
    words = (*select, *ignore)
    parts = tuple(dict.fromkeys(part for word in words for part in word.split(AND)))
    groups = _ask_history(cells, parts, ask)
    problems = [text for part in parts if part not in groups for text in _complaints(part, cells)]
    problems = problems or [
        f"'{word}' matches no cell: each of its parts does, and no cell has all of them"
        for word in words
        if AND in word and not groups and not any(matches(cell, word, groups) for cell in cells)
    ]
    if problems:
        hint = (
            "a word is a glob on names, an id, a number, setting=value, or one of "
            f"{', '.join(LAST_WORDS)}, several joined by commas where all must hold; see the list "
            "command"
        )
        raise UsageError("\n".join(problems), hint=hint)
    chosen: list[Cell] = []
    left_out: list[tuple[Cell, str]] = []
    for cell in cells:
        reason = _why_not(cell, select, ignore, groups)
        if reason is None:
            chosen.append(cell)
        else:
            left_out.append((cell, reason))
    if not chosen:
        raise UsageError(_why_nothing(select, groups))
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


def matches(cell: Cell, word: str, groups: Groups) -> bool:
    """Return whether a word names a cell; of several joined by a comma, whether all do."""
    return all(_matches(cell, part, groups) for part in word.split(AND))


def _matches(cell: Cell, word: str, groups: Groups) -> bool:
    if word in groups:
        return cell.cell_id in groups[word]
    key, equals, value = word.partition("=")
    if equals:
        return any(fnmatchcase(text, value.lower()) for text in _texts(cell, key))
    if word.isdecimal() and int(word) == cell.number:
        return True
    return fnmatchcase(cell.name, word) or fnmatchcase(cell.cell_id, word)


def _texts(cell: Cell, key: str) -> tuple[str, ...]:
    """Return what a cell has of a setting; of `feature` those that are on, or `none`."""
    if key == FEATURE:
        return tuple(sorted(cell.features)) or ("none",)
    if key == EXPECTED:
        return (cell.expect.outcome,)
    return (_text(cell.config[key]),) if key in cell.config else ()


def _text(value: Any) -> str:
    """Return a setting as people type it: `true`, `none`, `bf16`, `16`."""
    return str(value).lower()


def _ask_history(cells: Sequence[Cell], words: Sequence[str], ask: AskHistory | None) -> Groups:
    """Look up the words that need it.

    Raises:
        UsageError: there is no history, or none of the cells is in it, so that nothing is known.
    """
    names = {cell.name for cell in cells}
    wanted = [word for word in words if word in LAST_WORDS and word not in names]
    if not wanted:
        return {}
    last = ask([cell.cell_id for cell in cells]) if ask else {}
    unknown = [word for word in wanted if word != "new"]
    if unknown and not last:
        where = "none of these cells is in it" if ask else "there is none yet"
        raise UsageError(
            f"'{unknown[0]}' asks the history, and {where}",
            hint="run the cells once without it; --history names another file",
        )
    return {word: _group(word, cells, last) for word in wanted}


def _group(word: str, cells: Sequence[Cell], last: Mapping[str, LastResult]) -> frozenset[str]:
    if word == "new":
        return frozenset(cell.cell_id for cell in cells if cell.cell_id not in last)
    if word == "slow":
        times = {key: one.wall_s for key, one in last.items() if one.wall_s is not None}
        slowest = sorted(times, key=lambda key: -times[key])
        return frozenset(slowest[: -(-len(times) // SLOW_SHARE)])
    wanted = {"failed": BAD, "crashed": (Status.CRASHED,), "passed": (Status.PASSED,)}[word]
    return frozenset(key for key, one in last.items() if one.status in wanted)


def _why_nothing(select: Sequence[str], groups: Groups) -> str:
    empty = [word for word in select if word in groups and not groups[word]]
    if select and len(empty) == len(select):
        meaning = " or ".join(LAST_WORDS[word] for word in empty)
        return f"nothing is left to run: of no cell can it be said that {meaning}"
    return "nothing is left to run: everything selected is also ignored"


def _why_not(
    cell: Cell, select: Sequence[str], ignore: Sequence[str], groups: Groups
) -> str | None:
    if select and not any(matches(cell, word, groups) for word in select):
        return "left out by --select " + " ".join(select)
    hit = next((word for word in ignore if matches(cell, word, groups)), None)
    return None if hit is None else f"left out by --ignore {hit}"


def _complaints(word: str, cells: Sequence[Cell]) -> Iterator[str]:
    """Yield what is wrong with a word that matches nothing."""
    if any(matches(cell, word, {}) for cell in cells):
        return
    key, equals, _ = word.partition("=")
    settings = [FEATURE, EXPECTED, *(sorted(cells[0].config) if cells else ())]
    if equals and key not in settings:
        yield f"'{word}': unknown setting '{key}'{near_names(key, settings)}"
    elif equals:
        seen = sorted({text for cell in cells for text in _texts(cell, key)})
        near = near_names(word.partition("=")[2], seen)
        more = ", ..." if len(seen) > 12 else ""
        yield f"'{word}' matches no cell{near}; {key} is one of: {', '.join(seen[:12])}{more}"
    else:
        yield f"'{word}' matches no cell{near_names(word, [cell.name for cell in cells])}"
