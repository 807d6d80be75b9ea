"""Which cell runs next: those that take longest first, and those under suspicion alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from harness.matrix import Cell

MAX_LOSSES = 2
"""How often a cell may be lost before it is parked; the second time it has run alone."""
LOOK = 200
"""How many waiting cells are looked at for one that fits."""


def longest_first(cells: Sequence[Cell], durations: Mapping[str, float] | None) -> list[Cell]:
    """Return cells so that none that takes long is alone at the end; unknown ones go first.

    Args:
        cells: cells in matrix order.
        durations: seconds that cells took before, by id.
    """
    known = durations or {}
    return sorted(cells, key=lambda cell: -known.get(cell.cell_id, float("inf")))


class CellQueue:
    """The cells of a run that have not begun."""

    def __init__(self, cells: Sequence[Cell], durations: Mapping[str, float] | None = None) -> None:
        """Put the cells in order.

        Args:
            cells: cells to run, in matrix order.
            durations: seconds that cells took before, by id; see `longest_first`.
        """
        self._waiting = longest_first(cells, durations)[::-1]
        self._suspects: list[Cell] = []
        self._losses: Counter[str] = Counter()
        self._is_alone = False

    def add(self, cells: Sequence[Cell]) -> None:
        """Put further cells behind those that wait."""
        self._waiting[:0] = reversed(cells)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._suspects)

    def take(
        self, running: int, jobs: int, fits: Callable[[Cell], bool] = lambda cell: True
    ) -> Cell | None:
        """Return the cell to start beside those that run, or None when it has to wait.

        A cell that was lost once may be what ends the process that forks all the others. It runs
        again when the rest is done, and alone, so that a second loss can be laid to its charge.

        Args:
            running: how many run.
            jobs: how many may run.
            fits: whether a cell could start now, such as on a free device.
        """
        if running == 0:
            self._is_alone = False
        if self._is_alone or running >= jobs:
            return None
        for index in range(len(self._waiting) - 1, max(-1, len(self._waiting) - 1 - LOOK), -1):
            if fits(self._waiting[index]):
                return self._waiting.pop(index)
        if self._suspects and running == 0 and not self._waiting:
            self._is_alone = True
            return self._suspects.pop()
        return None

    def again(self, cell: Cell) -> None:
        """Put a cell back that is to run once more."""
        self._waiting.append(cell)

    def lose(self, cell: Cell) -> bool:
        """Take back a cell that was lost; return False when that was once too often."""
        self._losses[cell.cell_id] += 1
        if self._losses[cell.cell_id] >= MAX_LOSSES:
            return False
        self._suspects.append(cell)
        return True
