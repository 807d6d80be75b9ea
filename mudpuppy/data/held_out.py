"""How many samples are held out for evaluation, and whether that leaves enough to train on."""

from __future__ import annotations

from mudpuppy.config import TrainingConfig
from mudpuppy.errors import DatasetError


def count_held_out(num_samples: int, config: TrainingConfig) -> int:
    """Return how many samples are evaluated and not trained: none without early stopping.

    Raises:
        DatasetError: there are fewer than two samples to split, or none would be left to train.
    """
    if config.early_stopping is None:
        return 0
    held_out = max(1, round(num_samples * config.eval_fraction))
    if held_out >= num_samples:
        raise DatasetError(
            f"{num_samples} sample{'' if num_samples == 1 else 's'} cannot be split into training "
            "and evaluation",
            file=str(config.dataset),
            hint="add samples, or leave out --early-stopping",
        )
    return held_out
