"""Covering arrays: few rows in which every pair of features meets, at each method and precision.

covertable makes the rows; what they cover is counted here by other means, with the rule table
itself: feasible is what some accepted combination holds, covered is what stands in a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from itertools import combinations, product
from pathlib import Path
from typing import Any

from mudpuppy.cache import cache_root
from mudpuppy.errors import OutputError
from mudpuppy.files import write_json_atomic
from mudpuppy.ruleform import Rule
from mudpuppy.rules import RULES

Features = frozenset[str]
"""Those that are on; every other one is off."""


@dataclass(frozen=True, kw_only=True)
class Array:
    """What one covering array is about: one method at one precision."""

    method: str
    """The method of every row."""
    precision: str
    """The precision of every row."""
    features: tuple[str, ...]
    """Factors: each is on or off."""
    strength: int
    """How many features meet, on and off in every way."""
    apart: tuple[str, ...] = ()
    """Features that are on in rows of their own only, because such a row costs much or may not run
    everywhere; the first keeps away from the rows of the next. One that others cannot do without
    stands among them all the same."""
    seed: int = 0
    """Another seed gives other rows that cover as much."""
    rules: tuple[Rule, ...] = RULES
    """The rule table."""

    @cached_property
    def own_rules(self) -> tuple[Rule, ...]:
        """The rules about this method and precision."""
        return tuple(
            rule
            for rule in self.rules
            if self.method in rule.methods and self.precision in rule.precisions
        )

    def digest(self) -> str:
        """Return a hash of everything that the rows follow from."""
        rules = [[sorted(r.features), sorted(r.any_of), sorted(r.without)] for r in self.own_rules]
        words = [_made_by(), self.method, self.precision, self.features, self.strength]
        text = json.dumps([*words, self.apart, self.seed, rules])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Coverage:
    """How much of what can be met is met."""

    feasible: int
    """Tuples of values that some accepted combination holds."""
    covered: int
    """Those of them that a row holds."""
    rows: int
    """Rows looked at."""
    missing: tuple[str, ...] = ()
    """The first of the others, as a person reads them."""

    @property
    def share(self) -> float:
        """Covered over feasible; 1 where nothing can be met."""
        return self.covered / self.feasible if self.feasible else 1.0

    def __add__(self, other: Coverage) -> Coverage:
        """Return the coverage of both together."""
        return Coverage(
            self.feasible + other.feasible,
            self.covered + other.covered,
            self.rows + other.rows,
            (self.missing + other.missing)[:MISSING_SHOWN],
        )


MISSING_SHOWN = 10


def load_rows(array: Array) -> tuple[Features, ...]:
    """Return the rows of `cover`, which are kept in the cache folder: making them takes seconds.

    Raises:
        OutputError: the cache folder cannot be written.
    """
    path = cache_root() / "covering" / f"{array.digest()}.json"
    try:
        return tuple(frozenset(row) for row in json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        pass
    except (ValueError, TypeError):  # torn or damaged: as good as none
        path.unlink()
    rows = cover(array)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, [sorted(row) for row in rows])
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror}",
            hint="name a folder that can be written in MUDPUPPY_CACHE",
        ) from None
    return rows


def cover(array: Array) -> tuple[Features, ...]:
    """Return rows that together hold every feasible tuple of values, each of them accepted.

    Deterministic: the same array gives the same rows, in the same order.
    """
    if not is_feasible(array):
        return ()
    possible = [name for name in array.features if is_feasible(array, on=[name])]
    wanted = {name for rule in array.own_rules for name in rule.without}
    apart = [name for name in array.apart if name in possible and name not in wanted]
    rows = list(_make(array, [name for name in possible if name not in apart], array.strength))
    for place, name in enumerate(apart):
        others = [one for one in possible if one not in apart[: place + 1]]
        rows += _make(array, others, max(1, array.strength - 1), always=name)
    return tuple(dict.fromkeys(rows))


def measure(array: Array, rows: Iterable[Features]) -> Coverage:
    """Count what can be met and what is, over all features of the array and all rows."""
    seen = list(rows)
    feasible = covered = 0
    missing: list[str] = []
    for on, off in _tuples(array.features, array.strength):
        if not is_feasible(array, on=on, off=off):
            continue
        feasible += 1
        if any(row.issuperset(on) and row.isdisjoint(off) for row in seen):
            covered += 1
        elif len(missing) < MISSING_SHOWN:
            words = [*on, *(f"no {name}" for name in off)]
            missing.append(f"{array.method} {array.precision}: {', '.join(words)}")
    return Coverage(feasible, covered, len(seen), tuple(missing))


def is_feasible(array: Array, *, on: Iterable[str] = (), off: Iterable[str] = ()) -> bool:
    """Return whether some accepted combination has these features on and those off.

    Features that are not of the array are off.
    """
    outside = {name for rule in array.own_rules for name in rule.without} - {*array.features}
    asked, denied = frozenset(on), frozenset(off)
    is_possible = asked <= {*array.features} and not asked & denied
    return is_possible and _can_be(array, asked, denied | outside)


def _can_be(array: Array, on: Features, off: Features) -> bool:
    """Look for an accepted combination, from `on` alone upwards.

    A rule that applies to what must be on can only be got rid of by switching on one of the
    features that it wants off: each of them is tried.
    """
    rules = array.own_rules
    broken = next((one for one in rules if one.applies(array.method, array.precision, on)), None)
    if broken is None:
        return True
    return any(_can_be(array, on | {name}, off) for name in sorted(broken.without - off))


def _tuples(
    features: Sequence[str], strength: int
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield every choice of features with every way of being on and off, as (on, off)."""
    for names in combinations(features, min(strength, len(features))):
        for values in product((True, False), repeat=len(names)):
            pairs = list(zip(names, values, strict=True))
            yield (
                tuple(n for n, is_on in pairs if is_on),
                tuple(n for n, is_on in pairs if not is_on),
            )


def _make(
    array: Array, features: Sequence[str], strength: int, always: str | None = None
) -> Iterator[Features]:
    """Yield the rows of covertable for these features, with one more that is always on."""
    from covertable import make

    fixed = frozenset([always] if always else [])
    names = [n for n in features if is_feasible(array, on=[n, *fixed])]
    if not names:
        yield fixed
        return
    rows = make(
        {name: [1, 0] for name in names},
        strength=min(strength, len(names)),
        salt=_salt(array, always),
        constraints=list(_conditions(array.own_rules, names, fixed)),
    )
    for row in rows:
        yield fixed | {name for name in names if row[name]}


def _conditions(
    rules: Iterable[Rule], names: Sequence[str], fixed: Features
) -> Iterator[dict[str, Any]]:
    """Yield what covertable must keep to: each rule turned round, over the factors there are."""

    def is_on(name: str, value: int) -> dict[str, Any]:
        return {"operator": "eq", "left": name, "value": value}

    known = fixed | set(names)
    for rule in rules:
        some = (rule.any_of & known) if rule.any_of else frozenset()
        if not rule.features <= known or (rule.any_of and not some):
            continue  # it can never apply
        ways = [is_on(name, 0) for name in sorted(rule.features - fixed)]
        ways += [is_on(name, 1) for name in sorted(rule.without & set(names))]
        if rule.any_of and not some & fixed:
            ways.append({"operator": "and", "conditions": [is_on(n, 0) for n in sorted(some)]})
        if not rule.without & fixed:
            yield {"operator": "or", "conditions": ways}


@cache
def _made_by() -> str:
    """Return what decides the rows beside the array: the library's version and this module."""
    return version("covertable") + hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _salt(array: Array, always: str | None) -> str:
    """Return words that differ in many letters: covertable's order follows the first of them."""
    words = f"{array.method} {array.precision} {always or ''} {array.seed}"
    return hashlib.sha256(words.encode()).hexdigest()
