"""How sure a share is: Wilson's interval, for shares of few."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(share: float, total: int, sureness: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a share; of scores between 0 and 1 it is too wide.

    Wilson, "Probable inference, the law of succession, and statistical inference" (1927).

    Args:
        share: 0 to 1.
        total: how many it is a share of, at least 1.
        sureness: how often the interval holds the truth, below 1.
    """
    z = NormalDist().inv_cdf((1 + sureness) / 2)
    scale = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return middle - half, middle + half
