"""The largest size that fits: doubling, then bisection, then a look at whether it is monotone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.facts.trials import Attempt

Try = Callable[[int], Attempt]
"""Runs one size and says whether it fits."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found."""

    largest: int
    """Largest size seen to fit; 0 where none does."""
    smallest_refused: int | None
    """Smallest size seen not to fit; absent where even the ceiling fits."""
    monotone: bool
    """Whether nothing fitted that is larger, beyond the resolution, than what did not."""
    attempts: tuple[Attempt, ...]
    """Every run, in order."""


def find_largest(
    attempt: Try, *, start: int, ceiling: int, resolution: float, max_probes: int
) -> Found:
    """Search the largest size that fits, and check the answer on both sides of it.

    Args:
        attempt: runs one size; asked at most once for each, but for the check.
        start: first size.
        ceiling: largest size to try.
        resolution: share of the largest size that the search may leave open.
        max_probes: runs at most, the check of three included.

    Raises:
        ValueError: sizes or numbers that make no search.
    """
    if not 1 <= start <= ceiling or resolution <= 0 or max_probes < 4:
        raise ValueError(f"no search from {start} to {ceiling} with {max_probes} runs")
    made: list[Attempt] = []

    def fits(value: int) -> bool:
        made.append(attempt(value))
        return made[-1].fits

    low, high, value = 0, ceiling + 1, start
    while len(made) < max_probes - 3 and low < value < high:
        if fits(value):
            low = value
        else:
            high = value
        if high > ceiling:
            value = min(2 * low, ceiling)
        elif high - low > max(1, resolution * low):
            value = (low + high) // 2
        else:
            break
    for other in _neighbours(low, high, ceiling):
        fits(other)
    return _conclude(made, resolution)


def _neighbours(low: int, high: int, ceiling: int) -> list[int]:
    """Return sizes that tell whether the answer is stable: itself, smaller ones, a larger one."""
    wanted = [low, 3 * low // 4, *([min(ceiling, high + high // 2)] if high <= ceiling else [])]
    return [one for one in dict.fromkeys(wanted) if one >= 1]


def _conclude(made: list[Attempt], resolution: float) -> Found:
    fitted = [one.value for one in made if one.fits]
    refused = [one.value for one in made if not one.fits]
    largest, smallest = max(fitted, default=0), min(refused, default=None)
    return Found(
        largest=largest,
        smallest_refused=smallest,
        monotone=smallest is None or largest <= smallest * (1 + resolution),
        attempts=tuple(made),
    )
