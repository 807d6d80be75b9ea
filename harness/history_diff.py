"""Compare two runs: what fails anew, what is fixed, flaky, slower, bigger, or not there any more.

Outcomes are compared as they are. Times and memory are noisy, so a cell is called slower or bigger
only when it exceeds the other run and what its earlier runs explain: their median and four times
their spread. With fewer than five earlier values, a ratio that is stated has to do.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from harness.findings import Status
from harness.history_queries import HistoryQueries
from harness.history_rows import BAD, Change, Comparison, Kind, RunRow
from harness.history_schema import read_word
from harness.results import Outcome

EARLIER_RUNS = 20
"""Runs before the new one that say what is usual."""
ENOUGH = 5
"""Values of a cell from which a spread is worth something."""
SPREADS = 4.0
"""Standard deviations, estimated from the median absolute deviation, that chance is granted."""
SAME_CODE_RUNS = 50
"""Newest runs of the same code that are searched for another outcome."""


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """When a number is larger than usual."""

    kind: Kind
    """What to call it."""
    column: str
    """Where it is stored."""
    unit: str
    """Its unit, as shown."""
    scale: float
    """What to divide the stored number by for that unit."""
    least_ratio: float
    """It must exceed the other run and the median by this, however steady it was."""
    least: float
    """And by this much, in the stored unit."""
    few_ratio: float
    """The same where there are too few earlier values for a spread."""


TIME = Yardstick(
    kind=Kind.SLOWER,
    column="wall_s",
    unit="s",
    scale=1.0,
    least_ratio=1.25,
    least=0.5,
    few_ratio=1.5,
)
MEMORY = Yardstick(
    kind=Kind.BIGGER,
    column="peak_rss_bytes",
    unit="MiB",
    scale=2**20,
    least_ratio=1.1,
    least=32 * 2**20,
    few_ratio=1.25,
)


class _Light(NamedTuple):
    """As much of a result as is needed to see that nothing changed."""

    cell_key: int
    status: str
    outcome: str
    wall_s: float | None
    peak_rss_bytes: float | None


Pair = tuple[_Light | None, _Light | None]
"""A cell in the old and in the new run."""


def compare_runs(history: HistoryQueries, old: RunRow, new: RunRow) -> Comparison:
    """Return how a run differs from another one, cell by cell."""
    before, after = _load(history, old.key), _load(history, new.key)
    pairs, renewed = _pair(history, before, after)
    kinds = {key: _classify(*pair) for key, pair in pairs.items()}
    kinds |= dict.fromkeys(_find_flaky(history, old, new, kinds), Kind.FLAKY)
    words = [(key, kind, "") for key, kind in kinds.items() if kind is not None]
    for yardstick in (TIME, MEMORY):
        words += _find_larger(history, old, new, pairs, yardstick)
    told = {key for key, _, _ in words}
    writer = _Writer(history, old, new, pairs, renewed, told)
    changes = [writer.write(*word) for word in words]
    order = {kind: place for place, kind in enumerate(Kind)}
    changes.sort(key=lambda change: (order[change.kind], change.name, change.cell_id))
    compared = len(before.keys() & after.keys()) + len(renewed)
    return Comparison(
        old=old,
        new=new,
        compared=compared,
        unchanged=compared - sum(1 for key in told if all(pairs[key])),
        changes=tuple(changes),
        environment=_compare_environments(history, old, new),
    )


def _compare_environments(
    history: HistoryQueries, old: RunRow, new: RunRow
) -> dict[str, tuple[Any, Any]]:
    rows = history.query(
        "SELECT run_key, environment FROM runs WHERE run_key IN (?, ?)", (old.key, new.key)
    )
    told = {key: json.loads(text) for key, text in rows}
    before, after = told[old.key], told[new.key]
    names = sorted(before.keys() | after.keys())
    return {
        name: (before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    }


def _load(history: HistoryQueries, run_key: int) -> dict[int, tuple[Any, ...]]:
    """Return what stands in a run, by cell, as the fields of `_Light`."""
    rows = history.query(
        "SELECT cell_key, status, outcome, wall_s, peak_rss_bytes FROM standing WHERE run_key = ?",
        (run_key,),
    )
    return {row[0]: row for row in rows}


def _pair(
    history: HistoryQueries,
    before: dict[int, tuple[Any, ...]],
    after: dict[int, tuple[Any, ...]],
) -> tuple[dict[int, Pair], frozenset[int]]:
    """Pair the cells about which something may be said; return also whose settings have changed.

    Cells are the same by id, and what is left over by name.
    """
    pairs: dict[int, Pair] = {
        key: (_light(before.get(key)), _light(now))
        for key, now in after.items()
        if not _is_quiet(before.get(key), now)
    }
    gone = _names(history, before.keys() - after.keys())
    come = {name: key for key, name in _names(history, after.keys() - before.keys()).items()}
    renewed = set()
    for key, name in gone.items():
        if name in come:
            pairs[come[name]] = (_light(before[key]), _light(after[come[name]]))
            renewed.add(come[name])
        else:
            pairs[key] = (_light(before[key]), None)
    return pairs, frozenset(renewed)


def _light(row: tuple[Any, ...] | None) -> _Light | None:
    return None if row is None else _Light._make(row)


def _is_quiet(was: tuple[Any, ...] | None, now: tuple[Any, ...]) -> bool:
    """Return whether a cell passed both times and took no more; nearly all of them did."""
    if was is None or not was[1] == now[1] == "passed":
        return False
    return not (_has_grown(was[3], now[3], TIME) or _has_grown(was[4], now[4], MEMORY))


def _has_grown(was: float | None, now: float | None, yardstick: Yardstick) -> bool:
    if was is None or now is None:
        return False
    return now > was * yardstick.least_ratio and now > was + yardstick.least


def _names(history: HistoryQueries, cell_keys: Collection[int]) -> dict[int, str]:
    rows = history.query(
        "SELECT cell_key, name FROM cells WHERE cell_key IN (SELECT value FROM json_each(?))",
        (json.dumps(list(cell_keys)),),
    )
    return dict(rows)


def _classify(before: _Light | None, after: _Light | None) -> Kind | None:
    """Return how the outcomes of a cell differ, or None when nothing is to be said."""
    was = before.status if before else None
    now = after.status if after else None
    if now in BAD:
        return Kind.STILL_FAILING if was in BAD else Kind.NEW_FAILURE
    if now == Status.PASSED:
        if was in BAD:
            return Kind.FIXED
        return None if was == Status.PASSED else Kind.APPEARED
    if now is None:
        return Kind.DISAPPEARED
    return Kind.NO_LONGER_RUN if was in (*BAD, Status.PASSED) else None


def _find_flaky(
    history: HistoryQueries, old: RunRow, new: RunRow, kinds: dict[int, Kind | None]
) -> frozenset[int]:
    """Return the cells that the code of one of the runs has both passed and failed."""
    wanted = (Kind.NEW_FAILURE, Kind.STILL_FAILING, Kind.FIXED)
    cells = json.dumps([key for key, kind in kinds.items() if kind in wanted])
    runs = history.query(
        "SELECT run_key FROM runs WHERE code IN (:old, :new) AND plant IS :plant "
        "ORDER BY run_key DESC LIMIT :limit",
        {"old": old.code, "new": new.code, "plant": new.plant, "limit": SAME_CODE_RUNS},
    )
    keys = json.dumps(sorted({old.key, new.key, *(row[0] for row in runs)}))
    among = (
        "run_key IN (SELECT value FROM json_each(:runs)) "
        "AND cell_key IN (SELECT value FROM json_each(:cells)) AND status <> 'skipped' "
        "GROUP BY cell_key, code, plant"
    )
    both = "count(DISTINCT status = 'passed') > 1"
    rows = history.query(
        f"SELECT cell_key FROM results JOIN runs USING (run_key) WHERE {among} "
        f"HAVING max(outcome = 'flaky') OR {both} UNION "
        f"SELECT cell_key FROM attempts JOIN runs USING (run_key) WHERE {among} HAVING {both}",
        {"runs": keys, "cells": cells},
    )
    return frozenset(row[0] for row in rows)


def _find_larger(
    history: HistoryQueries,
    old: RunRow,
    new: RunRow,
    pairs: dict[int, Pair],
    yardstick: Yardstick,
) -> list[tuple[int, Kind, str]]:
    """Return the cells whose number grew beyond chance, each with the numbers in words."""
    grown = dict(_list_grown(pairs, yardstick))
    earlier = _load_earlier(history, old, new, yardstick.column, grown)
    found = []
    for key, (was, now) in grown.items():
        values = earlier.get(key, [])
        known = len(values) >= ENOUGH
        median = statistics.median(values) if known else was
        spread = _spread(values, median) if known else 0.0
        ratio = yardstick.least_ratio if known else yardstick.few_ratio
        if now > median + max(SPREADS * spread, (ratio - 1) * median, yardstick.least):
            number = len(values) if known else 0
            words = _in_words(was, now, median, spread, number, yardstick)
            found.append((key, yardstick.kind, words))
    return found


def _list_grown(
    pairs: dict[int, Pair], yardstick: Yardstick
) -> Iterator[tuple[int, tuple[float, float]]]:
    """Yield the cells that passed both times with a larger number, and both numbers."""
    for key, (one, other) in pairs.items():
        if one and other and one.status == other.status == Status.PASSED:
            was, now = getattr(one, yardstick.column), getattr(other, yardstick.column)
            if _has_grown(was, now, yardstick):
                yield key, (was, now)


def _load_earlier(
    history: HistoryQueries, old: RunRow, new: RunRow, column: str, cells: Collection[int]
) -> dict[int, list[float]]:
    """Return what the earlier runs of the matrix on the same host measured, by cell."""
    if not cells:
        return {}
    runs = history.honest_runs(name=new.name, until=old.key, limit=EARLIER_RUNS)
    keys = [run.key for run in runs if run.host == new.host and run.key != new.key]
    rows = history.query(
        f"SELECT cell_key, {column} FROM results "
        "WHERE run_key IN (SELECT value FROM json_each(:runs)) "
        "AND cell_key IN (SELECT value FROM json_each(:cells)) "
        f"AND status = 'passed' AND {column} IS NOT NULL",
        {"runs": json.dumps(keys), "cells": json.dumps(list(cells))},
    )
    values: defaultdict[int, list[float]] = defaultdict(list)
    for cell_key, value in rows:
        values[cell_key].append(value)
    return dict(values)


def _spread(values: Sequence[float], median: float) -> float:
    """Return the standard deviation that a normal sample with this median deviation would have."""
    return 1.4826 * statistics.median(abs(value - median) for value in values)


def _in_words(
    was: float, now: float, median: float, spread: float, number: int, yardstick: Yardstick
) -> str:
    def shown(value: float) -> str:
        return f"{value / yardstick.scale:.{1 if yardstick is TIME else 0}f}"

    text = f"{shown(was)} -> {shown(now)} {yardstick.unit} (x {now / was:.2f})"
    if number:
        usual = f"{shown(median)} +- {shown(spread)} {yardstick.unit}"
        return f"{text}; usual: {usual} over {number} earlier runs"
    return f"{text}; too few earlier runs for a spread, x {yardstick.few_ratio:g} is the limit"


class _Writer:
    """Puts what changed about a cell into words; loads the details of all of them at once."""

    def __init__(
        self,
        history: HistoryQueries,
        old: RunRow,
        new: RunRow,
        pairs: dict[int, Pair],
        renewed: frozenset[int],
        touched: Collection[int],
    ) -> None:
        self._pairs = pairs
        self._renewed = renewed
        keys = json.dumps(list(touched))
        rows = history.query(
            "SELECT cell_key, cell_id, name, title FROM cells "
            "WHERE cell_key IN (SELECT value FROM json_each(?))",
            (keys,),
        )
        self._cells = {row[0]: row[1:] for row in rows}
        ids = [row[1] for row in rows]
        self._after = {row.cell_id: row for row in history.results_in(new.key, ids)}
        self._before = {row.cell_id: row for row in history.results_in(old.key, ids)}
        self._since = dict(
            history.query(_SINCE, {"cells": keys, "new": new.key, "plant": new.plant})
        )

    def write(self, key: int, kind: Kind, what: str) -> Change:
        cell_id, name, title = self._cells[key]
        before, after = self._pairs[key]
        text = what or self._explain(key, kind, cell_id)
        text += "; its settings have changed" if key in self._renewed else ""
        return Change(
            kind=kind,
            cell_id=cell_id,
            name=name,
            title=title,
            before=read_word(Outcome, before.outcome) if before else None,
            after=read_word(Outcome, after.outcome) if after else None,
            what=text,
        )

    def _explain(self, key: int, kind: Kind, cell_id: str) -> str:
        before, after = self._pairs[key]
        was = before.outcome if before else "not there"
        now = after.outcome if after else "not there"
        row = self._after.get(cell_id) or self._before.get(cell_id)
        message = row.message if row else ""
        if kind is Kind.STILL_FAILING:
            changed = "" if was == now else f"{was} -> "
            return f"{changed}{now} since {self._since.get(key, '?')}: {message}"
        if kind is Kind.FLAKY:
            return f"{was} -> {now}, and the same code has passed and failed it: {message}"
        return f"{was} -> {now}" + (f": {message}" if after and after.status != "passed" else "")


_SINCE = """SELECT c.cell_key, (
    SELECT u.run_id FROM results f JOIN runs u USING (run_key)
    WHERE f.cell_key = c.cell_key AND f.run_key <= :new AND u.plant IS :plant
        AND f.status IN ('failed', 'crashed')
        AND f.run_key > coalesce((
            SELECT p.run_key FROM results p JOIN runs v USING (run_key)
            WHERE p.cell_key = c.cell_key AND p.run_key <= :new AND v.plant IS :plant
                AND p.status = 'passed'
            ORDER BY p.run_key DESC LIMIT 1), -1)
    ORDER BY f.run_key LIMIT 1)
FROM cells c WHERE c.cell_key IN (SELECT value FROM json_each(:cells))"""
"""The run in which each cell began to fail without having passed since."""
