"""Read the losses back that TensorBoard shows of a run, by TensorBoard's own reader."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

_READER = "tensorboard.backend.event_processing"
TAG = "train/loss"
"""Name under which the trainer logs the loss of a step."""


def read_losses(output: Path) -> list[tuple[int, float]]:
    """Return step and loss of everything that was logged below a run's folder, in order."""
    events: Any = importlib.import_module(f"{_READER}.event_file_loader")
    tensors: Any = importlib.import_module("tensorboard.util.tensor_util")
    found: list[tuple[int, float]] = []
    for path in sorted(output.rglob("events.out.tfevents.*")):
        for event in events.EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == TAG:
                    number = float(tensors.make_ndarray(value.tensor))
                    found.append((int(event.step), number))
    return sorted(found)
