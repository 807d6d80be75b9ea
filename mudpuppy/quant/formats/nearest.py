"""Which of a few levels is nearest: by a table of narrow cells, an order faster than a search.

The line is cut into cells so narrow that each holds one border between two levels at most. The cell
of a number tells how many borders lie below it, and which one is left to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Nearest:
    """Counts the borders below numbers; the count is the index of the nearest level."""

    def __init__(
        self, borders: Sequence[float], per_unit: int, *, above: frozenset[float] = frozenset()
    ) -> None:
        """Make the tables.

        Args:
            borders: numbers of float32 in rising order, half-way between two levels.
            per_unit: cells for every unit, a power of two; so many that no two borders share one.
            above: borders that belong to the level above them; the others to the one below.

        Raises:
            ValueError: two borders lie in the same cell.
        """
        self._per_unit = float(per_unit)
        self._offset = float(-math.floor(min(0.0, borders[0])) * per_unit)
        self._last = float(math.ceil(borders[-1]) * per_unit + self._offset)
        cells = [int(border * per_unit + self._offset) for border in borders]
        if len({*cells}) < len(cells):
            raise ValueError(f"{per_unit} cells a unit do not separate {list(borders)}")
        below, limits = [], []
        for cell in range(int(self._last) + 1):
            below.append(sum(one < cell for one in cells))
            limit = borders[cells.index(cell)] if cell in cells else math.inf
            is_above = limit in above
            limits.append(_next_below(limit) if is_above else limit)
        self._below = torch.tensor(below, dtype=torch.int32)
        self._limits = torch.tensor(limits, dtype=torch.float32)
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, values: Tensor) -> Tensor:
        """Return the index of the nearest level of every number, int32.

        Args:
            values: float32, finite.
        """
        below, limits = self._tables_on(values.device)
        flat = values.reshape(-1)
        cell = (flat * self._per_unit).add_(self._offset).clamp_(0.0, self._last).to(torch.int32)
        found = torch.index_select(below, 0, cell)
        found.add_(flat > torch.index_select(limits, 0, cell))
        return found.view(values.shape)

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._tables:
            self._tables[device] = (self._below.to(device), self._limits.to(device))
        return self._tables[device]


def _next_below(number: float) -> float:
    """Return the float32 before a positive one."""
    bits = torch.tensor(number, dtype=torch.float32).view(torch.int32) - 1
    return float(bits.view(torch.float32))
