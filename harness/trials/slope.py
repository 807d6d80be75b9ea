"""The slope of a straight line through repeated measurements, with its confidence interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cache

CONFIDENCE = 0.95
"""Share of such intervals that hold the true slope, if the noise is independent and normal."""
LEAST = 4
"""Measurements below which there is no interval worth the name."""
_PANELS = 2000
"""Panels of Simpson's rule; with the doubling below, the quantile is exact to seven digits."""


def fit_slope(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the least-squares slope per measurement, and the ends of its interval of 95%.

    Source: the ordinary regression of a value on its index; Student's t with n - 2 degrees.

    Raises:
        ValueError: fewer than four measurements.
    """
    count = len(values)
    if count < LEAST:
        raise ValueError(f"{count} measurements give no interval; {LEAST} are the least")
    index = range(count)
    line = statistics.linear_regression(index, values)
    rest = sum(
        (y - line.intercept - line.slope * x) ** 2 for x, y in zip(index, values, strict=True)
    )
    spread = sum((x - (count - 1) / 2) ** 2 for x in index)
    error = math.sqrt(rest / (count - 2) / spread)
    margin = student_quantile((1 + CONFIDENCE) / 2, count - 2) * error
    return line.slope, line.slope - margin, line.slope + margin


@cache
def student_quantile(probability: float, degrees: int) -> float:
    """Return the value that Student's t exceeds with `1 - probability`, for one above a half.

    Raises:
        ValueError: the probability is not between a half and one, or there are no degrees.
    """
    if not 0.5 < probability < 1 or degrees < 1:
        raise ValueError(f"no quantile of {probability} with {degrees} degrees of freedom")
    low, high = 0.0, 1.0
    while _mass(high, degrees) < probability - 0.5:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _mass(middle, degrees) < probability - 0.5 else (low, middle)
    return (low + high) / 2


def _mass(limit: float, degrees: int) -> float:
    """Return the probability between 0 and `limit`, by Simpson's rule in the angle atan(t/√n).

    In that variable the density is a power of the cosine, smooth and bounded whatever the limit.
    """
    end = math.atan(limit / math.sqrt(degrees))
    step = end / _PANELS
    weights = (1 if i in (0, _PANELS) else 4 if i % 2 else 2 for i in range(_PANELS + 1))
    total = sum(w * math.cos(i * step) ** (degrees - 1) for i, w in enumerate(weights))
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    return scale * total * step / 3
