"""What comes out of a row: its ratios, whether the goal is reached, and whether it got worse."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.frame import Figures, NotRun, Row, Sides

REACHED, SHORT, NOT_RUN, SHOWN = "reached", "short", "not run", "shown"
HELD, WORSE, FREE = "held", "worse", "not guarded"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A row and what came out."""

    name: str
    what: str
    against: str | None
    figure: str
    goal: str
    status: str
    """One of `reached`, `short`, `not run` and `shown`."""
    reason: str = ""
    """Why it is not run."""
    ratio: float | None = None
    """Median of the rounds' ratios, or of our figure where it is compared with nothing."""
    worst: float | None = None
    best: float | None = None
    calm: float | None = None
    """The ratio of the best samples of both sides: what neighbours disturb least."""
    wall: float | None = None
    """The same ratio in wall time, where times are compared."""
    ours_value: float | None = None
    """Median of our figure."""
    against_value: float | None = None
    """Median of the other's."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


def judge(row: Row, sides: Sides) -> Outcome:
    """Compare the two sides of a row.

    A side that is missing is not run, and says why; one whose figure is missing is a mistake.

    Raises:
        KeyError: the measurement gave no such side, or no such figure.
    """
    ours = sides[row.ours]
    other = ours if row.against is None else sides[row.against]
    for side in (ours, other):
        if isinstance(side, NotRun):
            return _outcome(row, NOT_RUN, reason=side.reason)
    assert not isinstance(ours, NotRun)
    assert not isinstance(other, NotRun)
    if row.against is None:
        values = [sample[row.figure] for sample in ours]
        return _compared(row, values, calm=_calmest(row, values), ours=values)
    mine, theirs = ([sample[row.figure] for sample in side] for side in (ours, other))
    return _compared(
        row,
        _ratios(row, mine, theirs),
        calm=_ratio(row, _calmest(row, mine), _calmest(row, theirs)),
        ours=mine,
        against=theirs,
        wall=_wall(row, ours, other),
    )


def unrun(row: Row, reason: str) -> Outcome:
    """Return the outcome of a row whose subject was not measured."""
    return _outcome(row, NOT_RUN, reason=reason)


def guard(row: Row, now: Outcome, kept: Mapping[str, Any] | None, same_machine: bool) -> str:
    """Return whether a row still is what was committed: `held`, `worse ...` or `not guarded ...`.

    Args:
        row: the row, which knows by how much its figure may differ.
        now: what came out.
        kept: what was committed; None where nothing was.
        same_machine: whether it was measured on the same kind of processor: times are only
            comparable there, since processors differ in what they are fast at.
    """
    allowed = row.allowed
    if allowed is None:
        return FREE
    if now.status == NOT_RUN:
        return f"{FREE}: {now.reason}"
    if kept is None or kept.get("calm") is None:
        return f"{FREE}: nothing is committed"
    if row.is_time and not same_machine:
        return f"{FREE}: times are not compared here"
    assert row.goal is not None
    assert now.calm is not None
    before = float(kept["calm"])
    limit = before / allowed if row.goal.is_least else before * allowed
    is_held = now.calm >= limit if row.goal.is_least else now.calm <= limit
    return HELD if is_held else f"{WORSE}: {now.calm:.4g}, committed {before:.4g}"


def _compared(
    row: Row,
    ratios: Sequence[float],
    *,
    calm: float,
    ours: Sequence[float],
    against: Sequence[float] = (),
    wall: float | None = None,
) -> Outcome:
    median = statistics.median(ratios)
    status = SHOWN
    if row.goal is not None:
        status = REACHED if row.goal.is_reached(median) else SHORT
    low, high = min(ratios), max(ratios)
    is_least = row.goal is not None and row.goal.is_least
    return _outcome(
        row,
        status,
        ratio=median,
        worst=low if is_least else high,
        best=high if is_least else low,
        calm=calm,
        wall=wall,
        ours_value=statistics.median(ours),
        against_value=statistics.median(against) if against else None,
    )


def _outcome(row: Row, status: str, **more: Any) -> Outcome:
    return Outcome(
        name=row.name,
        what=row.what,
        against=row.against,
        figure=row.figure,
        goal="" if row.goal is None else str(row.goal),
        status=status,
        **more,
    )


def _ratios(row: Row, mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of every round; of every sample where one side has only one."""
    if len(mine) != len(theirs):
        if 1 not in (len(mine), len(theirs)):
            raise ValueError(f"{row.name}: {len(mine)} samples and {len(theirs)}")
        length = max(len(mine), len(theirs))
        mine, theirs = list(mine) * (length // len(mine)), list(theirs) * (length // len(theirs))
    return [_ratio(row, one, other) for one, other in zip(mine, theirs, strict=True)]


def _ratio(row: Row, ours: float, other: float) -> float:
    top, bottom = (other, ours) if row.goal is not None and row.goal.is_least else (ours, other)
    if bottom == 0:
        return math.inf if top else 1.0
    return top / bottom


def _calmest(row: Row, values: Sequence[float]) -> float:
    """Return the best of times, since others only make them longer; the median of the rest."""
    return min(values) if row.is_time else statistics.median(values)


def _wall(row: Row, ours: Sequence[Figures], other: Sequence[Figures]) -> float | None:
    """Return the ratio in wall time of a row that compares processor time."""
    if row.figure != "cpu_s" or not all("wall_s" in sample for sample in (*ours, *other)):
        return None
    mine, theirs = ([sample["wall_s"] for sample in side] for side in (ours, other))
    return statistics.median(_ratios(row, mine, theirs))
