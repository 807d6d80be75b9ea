"""Small parts that several trainers share: means in the log, no reference left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mudpuppy.config import TrainingConfig

REFERENCE = "ref"
"""The name TRL gives to the frozen copy of an adapter."""
COMPILED_MULTIPLE = 64
"""Tokens to whose multiple a batch is padded where the model is compiled: torch compiles again for
every width it meets, which costs more than the padding ever does."""


def width_multiple(config: TrainingConfig) -> int | None:
    """Return the number to whose multiple batches are padded, or None for no such wish."""
    return COMPILED_MULTIPLE if config.compile else None


def round_up(width: int, multiple: int | None) -> int:
    """Return the next multiple, `width` itself where there is no wish."""
    return width if multiple is None else -(-width // multiple) * multiple


class LogsMeans:
    """Mixed into a trainer: numbers of every batch, logged as their mean over a step."""

    def note(self, numbers: Mapping[str, Tensor]) -> None:
        """Keep the numbers of one training batch."""
        for name, value in numbers.items():
            self._noted[name].append(float(value.detach()))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the means since the last step, too."""
        means = {name: sum(values) / len(values) for name, values in self._noted.items()}
        self._noted.clear()
        super().log({**logs, **means}, start_time)  # type: ignore[misc]  # the trainer's own

    @property
    def _noted(self) -> dict[str, list[float]]:
        noted: dict[str, list[float]] = vars(self).setdefault("_means", defaultdict(list))
        return noted


class LeavesNoReference:
    """Mixed into a trainer of TRL: the model is handed back without its reference."""

    model: Any
    ref_model: Any

    def train(self, *words: Any, **settings: Any) -> Any:
        """Train, and take the reference away whatever happens."""
        try:
            return super().train(*words, **settings)  # type: ignore[misc]  # the trainer's own
        finally:
            self.ref_model = None
            forget_reference(self.model)


def forget_reference(model: Any) -> None:
    """Delete the frozen copy of an adapter that TRL adds to the model."""
    if REFERENCE in getattr(model, "peft_config", {}):
        model.delete_adapter(REFERENCE)
