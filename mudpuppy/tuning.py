"""What the LoRA guide advises for so much data: rank, epochs, learning rates (seed 002).

One place for its thresholds: `mud-puppy data` says them before a run, the doctor's notes after one.
Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

LEARNING_RATES = (1e-4, 2e-4, 5e-4, 1e-3)
"""Learning rates to try for an adapter, in this order."""
ALPHA_PER_RANK = 2
"""Alpha is this many times the rank."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What is usual for a number of samples."""

    ranks: tuple[int, int]
    """Lowest and highest rank."""
    epochs: tuple[int, int]
    """Fewest and most epochs."""


_TABLE = (
    (1_000, Advice(ranks=(8, 16), epochs=(5, 10))),
    (10_000, Advice(ranks=(32, 64), epochs=(3, 5))),
)
_BEYOND = Advice(ranks=(128, 256), epochs=(1, 3))


def advise(samples: float) -> Advice:
    """Return what the guide advises for a number of training samples."""
    return next((advice for bound, advice in _TABLE if samples < bound), _BEYOND)


def describe_advice(samples: int) -> str:
    """Return the guide's advice for a number of samples, in one line."""
    one = advise(samples)
    (low, high), (fewest, most) = one.ranks, one.epochs
    rates = ", ".join(f"{rate:g}" for rate in LEARNING_RATES)
    return (
        f"for {samples:,} samples a guide to LoRA takes rank {low} to {high}, alpha "
        f"{ALPHA_PER_RANK} x the rank, {fewest} to {most} epochs, and tries the learning rates "
        f"{rates} in this order"
    )
