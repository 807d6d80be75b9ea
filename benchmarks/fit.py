"""How a cost grows with a size: the exponent of the power law that fits best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Power:
    """cost = factor * size ** exponent."""

    exponent: float
    factor: float
    off: float
    """Largest relative distance of a point from the curve."""

    def __call__(self, size: float) -> float:
        """Return the cost of a size."""
        return self.factor * math.pow(size, self.exponent)


def fit_power(sizes: Sequence[float], costs: Sequence[float]) -> Power:
    """Fit a power law by least squares in logarithms, where every point weighs the same.

    A fixed cost beside a linear one makes the exponent smaller than 1, never larger: an exponent
    above 1 says that the cost grows faster than the size.

    Raises:
        ValueError: fewer than two different sizes, another number of costs, or one that is not
            above 0.
    """
    if len(sizes) != len(costs):
        raise ValueError(f"{len(sizes)} sizes and {len(costs)} costs")
    if len(set(sizes)) < 2:
        raise ValueError("a curve needs two different sizes")
    if min(*sizes, *costs) <= 0:
        raise ValueError("sizes and costs must be above 0")
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    spread = math.fsum((one - mean_x) ** 2 for one in x)
    exponent = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    made = Power(exponent=exponent, factor=math.exp(mean_y - exponent * mean_x), off=0.0)
    off = max(abs(made(size) / cost - 1) for size, cost in zip(sizes, costs, strict=True))
    return Power(exponent=made.exponent, factor=made.factor, off=off)
