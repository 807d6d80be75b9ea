"""Force what the rule table rejects, to see whether some of it would work after all.

The rules are taken out in the cell's own process only. What then trains and leaves a healthy
artefact is no failure: it is a rejection that somebody should think about again.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.matrix import CELL_ID_DIGITS, Cell
from harness.results import CellResult, Outcome
from scenarios.schema import Expectation

WITHOUT_RULES = "without_rules"
"""Option of a cell that is trained: codes of the rules that are taken out for it."""


def force_cells(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Return the rejected ones of the cells, to be trained without the rules that reject them."""
    return tuple(_force(cell) for cell in cells if cell.expect.outcome == "rejected")


def _force(cell: Cell) -> Cell:
    codes = [rule.code for rule in cell.decision.rejections]
    words = f"without {' '.join(codes)}: {cell.cell_id}"
    return replace(
        cell,
        cell_id=hashlib.sha256(words.encode()).hexdigest()[:CELL_ID_DIGITS],
        expect=Expectation(),
        options={**cell.options, WITHOUT_RULES: codes},
    )


def take_out_rules(options: Mapping[str, Any]) -> None:
    """Take the rules that a cell names out of the table of this process."""
    codes = frozenset(options.get(WITHOUT_RULES, ()))
    if codes:
        rules: Any = importlib.import_module("mudpuppy.rules")
        rules.RULES = tuple(rule for rule in rules.RULES if rule.code not in codes)


def audit_rejections(
    forced: Sequence[Cell], results: Iterable[CellResult]
) -> tuple[dict[str, Any], ...]:
    """Return for each forced cell what became of it, as plain JSON types, in matrix order.

    `works` says that it trained and left a healthy artefact.
    """
    codes = {cell.cell_id: list(cell.options[WITHOUT_RULES]) for cell in forced}
    return tuple(
        {
            "name": result.name,
            "cell_id": result.cell_id,
            "codes": codes[result.cell_id],
            "works": result.outcome is Outcome.PASSED,
            "outcome": result.outcome.value,
            "message": result.message,
        }
        for result in results
    )
