"""Which settings would make a run fit: each one is predicted, none is guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mudpuppy.config import TrainingConfig
from mudpuppy.estimate.predict import Prediction, predict

HEADROOM = 0.9
"""Share of the memory that a prediction may take: allocators fragment, others use the device."""

ENOUGH = 3
"""Options after which no further one is tried."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A change of settings, and what it leads to."""

    flags: str
    """What to type beside the flags that were given."""
    device: int
    """Predicted bytes on the device."""
    host: int
    """Predicted bytes on the host."""


def fits(prediction: Prediction, memory: int) -> bool:
    """Return whether a prediction fits into `memory` bytes with some room left."""
    return prediction.device <= HEADROOM * memory


def find_options(
    settings: Any,
    config: TrainingConfig,
    memory: int,
    predicting: Callable[[Any, TrainingConfig], Prediction] = predict,
) -> list[Option]:
    """Return the changes that make the run fit, the least painful first; none that is refused.

    Args:
        settings: the model's configuration.
        config: the settings of the run that does not fit.
        memory: bytes of the device.
        predicting: how to predict.
    """
    found = []
    for flags, changes in _changes(config):
        changed = config.model_copy(update=changes)
        if not changed.decide().accepted:
            continue
        made = predicting(settings, changed)
        if fits(made, memory):
            found.append(Option(flags=flags, device=made.device, host=made.host))
        if len(found) == ENOUGH:
            break
    return found


def _changes(config: TrainingConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield changes from small to large, each with its flags."""
    small: dict[str, Any] = {}
    flags: list[str] = []
    if not config.gradient_checkpointing and not config.stream:
        small, flags = {"gradient_checkpointing": True}, ["--gradient-checkpointing"]
        yield " ".join(flags), dict(small)
    if config.batch_size > 1 and config.tokens_per_batch is None:
        accumulated = config.gradient_accumulation * config.batch_size
        small |= {"batch_size": 1, "gradient_accumulation": accumulated}
        flags += ["--batch-size 1", f"--gradient-accumulation {accumulated}"]
        yield " ".join(flags), dict(small)
    if config.max_length >= 1024:
        half = config.max_length // 2
        yield f"{' '.join(flags)} --max-length {half}".strip(), {**small, "max_length": half}
    if not config.trains_adapter and not config.zero_offload and not config.stream:
        yield f"{' '.join(flags)} --zero-offload".strip(), {**small, "zero_offload": True}
    if not config.trains_adapter and not config.stream:
        streamed = {**small, "stream": True, "gradient_checkpointing": False}
        rest = " ".join(flag for flag in flags if flag != "--gradient-checkpointing")
        yield f"{rest} --stream".strip(), streamed
    if not config.trains_adapter:
        given = {"--stream": config.stream, "--zero-offload": config.zero_offload}
        small |= {"stream": False, "zero_offload": False}
        if any(given.values()):
            flags.append(f"(without {' '.join(flag for flag, on in given.items() if on)})")
        yield f"--method lora {' '.join(flags)}".strip(), {**small, "method": "lora"}
    if config.method in ("full", "lora"):
        yield f"--method qlora {' '.join(flags)}".strip(), {**small, "method": "qlora"}
