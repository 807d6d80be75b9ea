"""Shrink a failing cell to the smallest combination that fails in the same way.

Factors (method, precision, each feature) are set back, first many at once and then one at a time,
as long as the failure stays the same: same outcome, same first finding. What is left is needed in
all its parts: without any single one the cell passes, fails otherwise or cannot be (Zeller and
Hildebrandt 2002, "Simplifying and isolating failure-inducing input"). What the history knows of
this very code costs nothing, the rest is run, within a budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harness.history import describe_ending
from harness.history_rows import BAD, ResultRow
from harness.matrix import Cell
from harness.neighbours import Combination, Neighbour, combination_of
from harness.results import CellResult, SmallestFailure

DEFAULT_CELLS = 30
"""Extra cells that may be run for one failure."""
DEFAULT_SECONDS = 600.0
"""Seconds after which none is started any more."""


@dataclass(frozen=True)
class Failure:
    """What makes two failures the same."""

    outcome: str
    """The outcome."""
    mark: str
    """Code of the first finding; without findings, how the worker ended."""

    def __str__(self) -> str:
        return f"{self.outcome.replace('-', ' ')}, {self.mark}" if self.mark else self.outcome


def failure_of(result: CellResult) -> Failure | None:
    """Return how a result fails, or None when it does not."""
    if result.status not in BAD:
        return None
    codes = [str(one.get("code", "")) for one in result.findings]
    return Failure(result.outcome, codes[0] if codes else describe_ending(result.worker) or "")


def failure_of_row(row: ResultRow) -> Failure | None:
    """Return the same of a result in the history."""
    if row.status not in BAD:
        return None
    return Failure(row.outcome, row.codes[0] if row.codes else row.ending or "")


class BudgetSpentError(Exception):
    """Nothing more may be run."""


@dataclass
class Budget:
    """How much may be run."""

    cells: int = DEFAULT_CELLS
    """Cells that are left."""
    seconds: float = DEFAULT_SECONDS
    """Seconds from now until no further one is started."""
    _until: float = field(init=False)

    def __post_init__(self) -> None:
        self._until = time.monotonic() + self.seconds

    def spend(self) -> None:
        """Take one cell.

        Raises:
            BudgetSpentError: there is none left, or no time.
        """
        if self.cells < 1 or time.monotonic() > self._until:
            raise BudgetSpentError
        self.cells -= 1


Known = Callable[[Cell], CellResult | ResultRow | None]
"""Returns what is known of a cell with this very code, or None."""
Run = Callable[[Cell], CellResult]
"""Runs a cell."""
Watch = Callable[[Combination, str], None]
"""Told of every combination that was looked at, and what came out."""


@dataclass
class Shrinker:
    """Looks for the smallest failing combination of one cell after the other.

    Args:
        known: looks a cell up.
        run: runs a cell that is not known.
        budget: how much may be run, for all cells together.
        watch: told of every step.
    """

    known: Known
    run: Run
    budget: Budget
    watch: Watch = lambda combination, outcome: None
    ran: int = 0
    """Cells that were run."""
    looked_up: int = 0
    """Cells whose result was known."""
    _answers: dict[str, Failure | None] = field(default_factory=dict)

    def shrink(self, cell: Cell, failure: Failure, neighbour: Neighbour) -> SmallestFailure:
        """Return the smallest combination that fails as a cell does.

        Args:
            cell: the failing cell.
            failure: how it fails.
            neighbour: makes its neighbours.
        """
        ran, looked_up = self.ran, self.looked_up
        search = _Search(self, cell, failure, neighbour)
        is_smallest = True
        try:
            search.reduce()
        except BudgetSpentError:
            is_smallest = False
        smallest = Combination.of_factors(search.factors)
        found = neighbour(smallest) or cell
        return SmallestFailure(
            combination=str(smallest),
            factors=search.factors,
            outcome=failure.outcome,
            mark=failure.mark,
            cell_id=found.cell_id,
            is_smallest=is_smallest,
            ran=self.ran - ran,
            looked_up=self.looked_up - looked_up,
            cells=(cell.name,),
        )

    def ask(self, cell: Cell, *, run: bool = True) -> Failure | None:
        """Return how a cell fails, or None; one that is not known is run if that is allowed.

        Raises:
            BudgetSpentError: it is not known and may not be run.
        """
        if cell.cell_id not in self._answers:
            result = self.known(cell)
            if result is not None:
                self.looked_up += 1
            elif not run:
                return None
            else:
                self.budget.spend()
                self.ran += 1
                result = self.run(cell)
            is_row = isinstance(result, ResultRow)
            self._answers[cell.cell_id] = (
                failure_of_row(result) if is_row else failure_of(result)  # type: ignore[arg-type]
            )
        return self._answers[cell.cell_id]


class _Search:
    """The reduction of one cell."""

    def __init__(
        self, shrinker: Shrinker, cell: Cell, failure: Failure, neighbour: Neighbour
    ) -> None:
        self._shrinker = shrinker
        self._cell = cell
        self._failure = failure
        self._neighbour = neighbour
        self.factors = combination_of(cell).factors

    def reduce(self) -> None:
        """Set factors back until every one that is left is needed.

        Raises:
            BudgetSpentError: before that was known; `factors` is the smallest so far.
        """
        self._start_from_what_is_known()
        if self.factors and self._fails(()):
            self.factors = ()
        size = max(1, len(self.factors) // 2)
        while self.factors:
            rest = next((one for one in self._without_chunks(size) if self._fails(one)), None)
            if rest is not None:
                self.factors = rest
                size = max(1, min(size, len(rest) // 2))
            elif size == 1:
                return
            else:
                size //= 2

    def _start_from_what_is_known(self) -> None:
        """Jump to a single factor that is known to fail so, and doubt those that passed last."""
        verdicts = {}
        for factor in self.factors:
            cell = self._neighbour(Combination.of_factors((factor,)))
            known = cell is not None and self._shrinker.known(cell) is not None
            verdicts[factor] = None if not known else self._fails((factor,))
            if verdicts[factor] and len(self.factors) > 1:
                self.factors = (factor,)
                return
        # Those that passed alone are set back first: they take the least away from the failure.
        self.factors = tuple(sorted(self.factors, key=lambda factor: verdicts[factor] is None))

    def _without_chunks(self, size: int) -> Sequence[tuple[str, ...]]:
        """Return the factors without each run of so many of them; nothing left is no candidate."""
        places = range(0, len(self.factors), size)
        rests = [self.factors[:start] + self.factors[start + size :] for start in places]
        return [rest for rest in rests if rest]

    def _fails(self, factors: tuple[str, ...]) -> bool:
        """Return whether a combination fails in the same way."""
        wanted = Combination.of_factors(factors)
        cell = self._neighbour(wanted)
        if cell is None or cell.expect.outcome != self._cell.expect.outcome:
            return False  # the rule table answers otherwise: nothing there can fail so
        failure = self._shrinker.ask(cell)
        self._shrinker.watch(wanted, str(failure) if failure else "passes")
        return failure == self._failure


def explain_others(
    found: Sequence[SmallestFailure], cell: Cell, failure: Failure
) -> SmallestFailure | None:
    """Return the smallest failure that is part of a cell and fails as it does, or None."""
    factors = set(combination_of(cell).factors)
    for one in found:
        is_part = factors.issuperset(one.factors)
        if (
            is_part
            and one.is_smallest
            and (one.outcome, one.mark)
            == (
                failure.outcome,
                failure.mark,
            )
        ):
            return one
    return None
