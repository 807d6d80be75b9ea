"""Delayed scaling for fp8: the scale of a tensor follows the largest values of the steps before.

    scale    max over the last N steps of max|t| / max(format); the tensor's own before there is one
    value    round-to-nearest-even(clip(t / scale)); what lies beyond the range is clipped, counted

A scale that is known before the tensor is lets a fused kernel round while it computes; the price is
a clipped value whenever a tensor grows faster than its history. Here the rounding is a pass of its
own either way, so all that is gained is runs that can be compared with such kernels. The recipe is
that of "Using FP8 with Transformer Engine" (`DelayedScaling`, `amax_compute_algo="max"`, margin 0);
unlike it, a run begins with the tensor's own scale instead of 1, and a step counts as one entry
however many batches it has.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mudpuppy.checkpoint_form import FP8_HISTORY_FILE
from mudpuppy.errors import OutputError
from mudpuppy.quant.stepping import StepState, step_states
from mudpuppy.records import Choice

INPUT, WEIGHT, GRADIENT = 0, 1, 2
"""Places of the three tensors that a linear layer rounds."""


class Saturation(NamedTuple):
    """How many values were rounded, and how many of them were clipped."""

    rounded: int
    """Values that went into a product."""
    clipped: int
    """Values beyond the largest number of the format at the delayed scale."""


class Fp8History(StepState):
    """Largest values of the last steps, of the three tensors of one linear layer.

    Args:
        window: steps that are remembered.
        device: where they are kept.
    """

    peaks: Tensor
    """float32, (3, window): newest first; 0 where there was no step yet."""
    counts: Tensor
    """int64, (2,): values rounded and clipped, with recomputed ones counted again."""

    def __init__(self, window: int, device: torch.device) -> None:
        super().__init__(3, device)
        # not part of the model: an adapter's checkpoint would leave them out
        peaks = torch.zeros(3, window, dtype=torch.float32, device=device)
        self.register_buffer("peaks", peaks, persistent=False)
        counts = torch.zeros(2, dtype=torch.int64, device=device)
        self.register_buffer("counts", counts, persistent=False)

    def peak(self, place: int, device: torch.device) -> Tensor:
        """Return the largest remembered value of one of the tensors; 0 where there is none."""
        return self.peaks[place].amax().to(device)

    @torch.no_grad()
    def see(self, place: int, exact: Tensor, largest: Tensor) -> None:
        """Note a tensor (float32) that is rounded, of which `largest` is the last that fits."""
        if not exact.numel():
            return
        size = exact.abs()
        self.note(place, size.amax())
        clipped = (size > largest).sum().to(self.counts.device)
        self.counts += torch.stack([torch.full_like(clipped, exact.numel()), clipped])

    def end_step(self) -> None:
        """Put what this step has shown before the rest; the oldest entry is forgotten."""
        seen = self.noted.to(self.peaks.device)
        rolled = self.peaks.roll(1, dims=1)
        rolled[:, 0] = seen
        # a step in which nothing was seen (or nothing finite) is none
        self.peaks.copy_(torch.where((seen > 0)[:, None], rolled, self.peaks))


def histories_of(model: nn.Module) -> list[Fp8History]:
    """Return the histories of a model, in its order."""
    return [one for one in step_states(model) if isinstance(one, Fp8History)]


def count_saturation(model: nn.Module) -> Saturation:
    """Return what was rounded and clipped in all layers of a model."""
    total = [0, 0]
    for one in histories_of(model):
        rounded, clipped = one.counts.tolist()
        total = [total[0] + rounded, total[1] + clipped]
    return Saturation(*total)


def describe_saturation(model: nn.Module) -> Choice:
    """Return the share of values that was clipped, for the run's record."""
    rounded, clipped = count_saturation(model)
    share = clipped / rounded if rounded else 0.0
    return Choice(
        value=f"{share:.2e} of the values",
        reason=f"{clipped:,} of {rounded:,} were beyond what the steps before had shown",
    )


def save_histories(model: nn.Module, folder: Path) -> None:
    """Write the histories into a checkpoint, where the model has any."""
    found = histories_of(model)
    if found:
        tensors = {f"{i}.peaks": one.peaks.cpu().contiguous() for i, one in enumerate(found)}
        tensors |= {f"{i}.counts": one.counts.cpu() for i, one in enumerate(found)}
        save_file(tensors, folder / FP8_HISTORY_FILE)


def load_histories(model: nn.Module, folder: Path) -> None:
    """Read the histories of a checkpoint, where the model has any.

    Raises:
        OutputError: the file is missing, or of other layers or another window.
    """
    found = histories_of(model)
    if not found:
        return
    path = folder / FP8_HISTORY_FILE
    if not path.is_file():
        raise OutputError(f"{path} is missing, so the fp8 scales cannot go on")
    tensors = load_file(path)
    wanted = {f"{i}.peaks": one.peaks.shape for i, one in enumerate(found)}
    wanted |= {f"{i}.counts": one.counts.shape for i, one in enumerate(found)}
    if {name: tensor.shape for name, tensor in tensors.items()} != wanted:
        raise OutputError(f"{path} is of other layers or of another --fp8-window")
    for index, one in enumerate(found):
        one.peaks.copy_(tensors[f"{index}.peaks"])
        one.counts.copy_(tensors[f"{index}.counts"])
