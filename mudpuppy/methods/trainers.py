"""Small parts that several trainers share: means in the log, heads in fp32, no reference left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

REFERENCE = "ref"
"""The name TRL gives to the frozen copy of an adapter."""


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


class HeadInFullPrecision:
    """Mixed into a trainer: whatever trains is held in fp32 while it does.

    PEFT does so for the matrices of LoRA, and leaves a head that is trained beside them in the type
    of the base, where fp16 gradients cannot be unscaled (FM42) and bf16 loses small steps.
    """

    model: Any

    def train(self, *words: Any, **settings: Any) -> Any:
        """Train, and give the head back in the type of the model around it."""
        kept = {
            name: parameter.dtype
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and parameter.dtype != torch.float32
        }
        parameters = dict(self.model.named_parameters())
        for name in kept:
            parameters[name].data = parameters[name].data.float()
        try:
            return super().train(*words, **settings)  # type: ignore[misc]  # the trainer's own
        finally:
            for name, parameter in self.model.named_parameters():
                if name in kept:
                    parameter.grad = None
                    parameter.data = parameter.data.to(kept[name])


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
