"""How much of a covering array some cells achieve, counted from their settings alone.

What can be met follows from the rule table (`harness.covering.is_feasible`), what is met from the
features that the settings of the cells switch on: no word of the library that made the rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from harness.covering import Coverage, Features, measure
from harness.matrix import Cell
from harness.rows import arrays_of
from scenarios.schema import Covering


@dataclass(frozen=True, kw_only=True)
class Group:
    """The coverage of one method at one precision."""

    method: str
    """The method."""
    precision: str
    """The precision."""
    coverage: Coverage
    """What its cells achieve."""


@dataclass(frozen=True, kw_only=True)
class MatrixCoverage:
    """The coverage of every method at every precision."""

    strength: int
    """How many features meet."""
    groups: tuple[Group, ...]
    """In the order of the rule table; a combination that is rejected alone has nothing to meet."""

    @property
    def total(self) -> Coverage:
        """All groups together."""
        return sum((group.coverage for group in self.groups), Coverage(0, 0, 0))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON types, for reports."""
        groups = [
            {"method": g.method, "precision": g.precision, **_plain(g.coverage)}
            for g in self.groups
        ]
        return {"strength": self.strength, **_plain(self.total), "groups": groups}


def measure_cells(covering: Covering, cells: Iterable[Cell]) -> MatrixCoverage:
    """Count what the cells cover of the arrays that a scenario file asks for.

    Args:
        covering: what the file asks for.
        cells: those that count, such as all of a file or those that ran; rejected ones do not.
    """
    rows: dict[tuple[str, str], list[Features]] = defaultdict(list)
    for cell in cells:
        if cell.decision.accepted:
            rows[cell.config["method"], cell.config["precision"]].append(cell.features)
    groups = [
        Group(
            method=array.method,
            precision=array.precision,
            coverage=measure(array, rows[array.method, array.precision]),
        )
        for array in arrays_of(covering)
    ]
    return MatrixCoverage(strength=covering.strength, groups=tuple(groups))


def _plain(coverage: Coverage) -> dict[str, Any]:
    return {**asdict(coverage), "missing": list(coverage.missing), "share": coverage.share}
