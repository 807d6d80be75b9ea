"""What a row of the table is: a figure of ours against that of somebody else, and a goal.

A *subject* is measured as a whole, in a process of its own. It has *sides* (ours, bitsandbytes, a
plain layer); every side has one *sample* a round, a dictionary of figures. A *row* compares one
figure of two sides within each round: neighbours on a machine move times by a factor of two, and
ratios within a round hardly. Goals are judged by the median of the ratios, times in processor time.
"""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Figures = dict[str, float]
"""One sample: figures by name. A name says its unit: `_s` seconds, `_mb` megabytes, `_bytes`."""
Work = Callable[[], Mapping[str, float] | None]
"""Does what one side does, once; may return figures, which replace those that were taken here."""
Choice = TypeVar("Choice")

EXACT, MEMORY, PROCESSOR, WALL = 1.02, 1.1, 2.0, 4.0
"""Times worse than the committed result that the guard lets pass, by the kind of figure."""


class NotRun(Exception):
    """Why a side or a whole subject is not measured."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


Sides = dict[str, list[Figures] | NotRun]
"""The samples of every side, one a round; or why there are none."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A bound of a ratio, or of a figure that is compared with nothing."""

    bound: float
    is_least: bool

    def __str__(self) -> str:
        """Return it as a table shows it."""
        return f"{'≥' if self.is_least else '≤'} {self.bound:g}"

    def is_reached(self, value: float) -> bool:
        """Return whether a value is at or beyond the bound; NaN never is."""
        return value >= self.bound if self.is_least else value <= self.bound


def at_most(bound: float) -> Goal:
    """Promise that ours / the other is at most `bound`."""
    return Goal(bound=bound, is_least=False)


def at_least(bound: float) -> Goal:
    """Promise that the other / ours is at least `bound`: times as fast, times as small."""
    return Goal(bound=bound, is_least=True)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    """Stable name within its subject."""
    what: str
    """What is measured, in a few words."""
    ours: str
    """The side that is ours."""
    against: str | None
    """The side that it is held against; None where the goal bounds our figure itself."""
    goal: Goal | None
    """What is promised; None where the figure is only shown."""
    figure: str = "cpu_s"
    """The figure that is compared."""
    margin: float | None = -1.0
    """Times worse than the committed result that the guard lets pass; None: not guarded; negative:
    what its figure allows."""

    @property
    def is_time(self) -> bool:
        """Whether seconds are compared, or how they grow."""
        return self.figure.endswith("_s") or self.figure == "exponent"

    @property
    def allowed(self) -> float | None:
        """Times worse than the committed result that the guard lets pass, or None."""
        if self.margin is None or self.goal is None:
            return None
        if self.margin > 0:
            return self.margin
        if self.is_time:
            return WALL if self.figure.startswith("wall") else PROCESSOR
        return MEMORY if self.figure.endswith(("_mb", "bytes")) else EXACT


@dataclass
class Plan:
    """What a measurement is given."""

    folder: Path
    """An empty folder of its own, gone afterwards."""
    is_quick: bool = False
    """Whether this is `make bench-quick`: seconds, not minutes."""
    rounds: int = 5
    """Rounds in which all sides take turns."""
    threads: int = 1
    """Threads of the arithmetic."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What to say beside the figures: sizes, shapes, data."""
    say: Callable[[str], None] = print
    """Told how far it is."""

    def pick(self, *, full: Choice, quick: Choice) -> Choice:
        """Return the size for this kind of run."""
        return quick if self.is_quick else full


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured together."""

    name: str
    """The name of its file."""
    title: str
    """What it is, for people."""
    measure: Callable[[Plan], Sides]
    """Measures all sides; may raise `NotRun`."""
    rows: tuple[Row, ...]
    """What is compared."""
    threads: int = 1
    """Threads of the arithmetic."""
    in_quick: bool = True
    """Whether `make bench-quick` measures it; it should take some seconds then."""
    minutes: float = 10.0
    """Time limit."""


def interleave(plan: Plan, sides: Mapping[str, Work | NotRun], *, is_warmed: bool = True) -> Sides:
    """Run every side once a round, and time it.

    Args:
        plan: how many rounds.
        sides: what to run, or why not.
        is_warmed: whether one round more comes first that does not count.

    Returns:
        `wall_s` and `cpu_s` (this process, all its threads) of every side and round, and whatever
        figures its work returned.
    """
    taken: Sides = {name: one if isinstance(one, NotRun) else [] for name, one in sides.items()}
    for number in range(-is_warmed, plan.rounds):
        for name, work in sides.items():
            samples = taken[name]
            if isinstance(work, NotRun) or isinstance(samples, NotRun):
                continue
            gc.collect()
            sample = timed(work)
            if number < 0:
                continue
            samples.append(sample)
            shown = "  ".join(f"{key} {value:.4g}" for key, value in sample.items())
            plan.say(f"  round {number + 1}  {name:<24} {shown}")
    return taken


def timed(work: Work) -> Figures:
    """Run `work` once and return its figures, with the seconds that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    given = work()
    figures = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    return figures | dict(given or {})


def needs(package: str) -> NotRun | None:
    """Return why a side that needs a package is not run, or None where it is there."""
    if importlib.util.find_spec(package) is not None:
        return None
    return NotRun(f"{package} is not installed (pip install 'mudpuppy[bench]')")


def needs_gpu() -> NotRun | None:
    """Return why what needs an accelerator is not run, or None where there is one."""
    import torch

    return None if torch.cuda.is_available() else NotRun("no GPU here")
