"""Ranges of int8 grids that last longer than a step: observed, learned, and frozen.

    observed  the largest input of each step, averaged over the steps: p <- m p + (1 - m) peak
              (Jacob et al., arXiv 1712.05877, section 3.1); the scale of a row of a weight follows
              its largest value, as long as nothing is frozen
    learned   scale = s0 e^r, where s0 is what was observed when rounding began and r, 0 at first,
              is a parameter. Its gradient is that of LSQ (Esser et al., arXiv 1902.08153); that it
              is learnt as a logarithm is TQT's (Jain et al., arXiv 1903.08066): AdamW moves every
              parameter by about the learning rate, which would be larger than the scale itself.
    frozen    as it was, from a share of the steps on

Unlike LSQ we begin with the largest value and not with twice the mean: for 8 bits that would spend
most levels on values that do not occur.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mudpuppy.quant.int8_matrix import SMALLEST_SCALE, peaks_of, scales_of
from mudpuppy.quant.stepping import StepState


@dataclass(frozen=True, kw_only=True)
class RangeSettings:
    """How ranges are found; by default each is that of the matrix itself, and there is no state."""

    per_tensor: bool = False
    """Whether the inputs of a layer share one scale; otherwise each token has its own."""
    learned: bool = False
    """Whether scales are trained; those of tokens never are."""
    momentum: float = 0.9
    """Share of an observed range that stays when a step ends, from 0 to below 1."""
    warmup: float = 0.0
    """Share of the steps before rounding begins, from 0 to below 1."""
    freeze: float = 1.0
    """Share of the steps after which ranges stay as they are; 1 for never."""

    @property
    def has_state(self) -> bool:
        """Whether anything lasts longer than a forward pass."""
        return self.per_tensor or self.learned or self.warmup > 0 or self.freeze < 1


class Ranges(NamedTuple):
    """The scales that a layer has learnt or seen."""

    weight: Tensor | None
    """float32, (out, 1); None where each row's largest value decides."""
    input: Tensor | None
    """float32, (1, 1); None where each token's largest value decides."""


class LayerRanges(StepState):
    """The ranges of one linear layer.

    Args:
        layer: the layer, whose weight is only read.
        settings: how its ranges are found.
    """

    weight_peak: Tensor
    """float32, (out, 1): what the scales of the weight are made of; 0 where they follow it."""
    input_peak: Tensor
    """float32, (1, 1): what the scale of the inputs is made of; 0 before the first step's end."""

    def __init__(self, layer: nn.Linear, settings: RangeSettings) -> None:
        device = layer.weight.device
        super().__init__(1, device)
        self.settings = settings
        self._layer = (layer,)  # a tuple, so that the layer does not become a part of its part
        self.rounding, self.frozen = True, False
        self.register_buffer("weight_peak", torch.zeros(layer.out_features, 1, device=device))
        self.register_buffer("input_peak", torch.zeros(1, 1, device=device))
        if settings.learned:
            self.weight_stretch = nn.Parameter(torch.zeros(layer.out_features, 1, device=device))
        if settings.learned and settings.per_tensor:
            self.input_stretch = nn.Parameter(torch.zeros(1, 1, device=device))

    def begin_step(self, share: float) -> None:
        """Round, and freeze, when it is time; the scales of the weight stand still from then on."""
        self.rounding = share >= self.settings.warmup
        self.frozen = self.settings.freeze < 1 and share >= self.settings.freeze
        if self.frozen or (self.settings.learned and self.rounding):
            own = peaks_of(self._layer[0].weight).to(self.weight_peak.device)
            self.weight_peak.copy_(torch.where(self.weight_peak > 0, self.weight_peak, own))

    def observe(self, input: Tensor) -> None:
        """Note the largest value of inputs (..., in), where they share a scale."""
        if self.settings.per_tensor and input.numel():
            self.note(0, input.detach().abs().amax())

    def end_step(self) -> None:
        """Take up the largest input of the step, unless the range is learnt or frozen by now."""
        if not self.settings.per_tensor:
            return
        stands = self.frozen or (self.settings.learned and self.rounding)
        seen, old = self.noted.to(self.input_peak.device).view(1, 1), self.input_peak
        new = old if stands else self.settings.momentum * old + (1 - self.settings.momentum) * seen
        kept = torch.where(old > 0, new, seen)
        self.input_peak.copy_(torch.where(seen > 0, kept, old))

    def weight_scales(self, weight: Tensor) -> Tensor | None:
        """Return the scales of the weight (out, 1), or None where they follow it."""
        if not self.settings.learned and not self.frozen:
            return None
        peaks = self.weight_peak.to(weight.device)
        peaks = torch.where(peaks > 0, peaks, peaks_of(weight))
        return self._stretched(scales_of(peaks), "weight_stretch")

    def input_scale(self, input: Tensor) -> Tensor | None:
        """Return the scale of inputs (..., in) as (1, 1), or None where each token has its own."""
        if not self.settings.per_tensor:
            return None
        peak = self.input_peak.to(input.device)
        own = peaks_of(input.reshape(1, -1)) if input.numel() else torch.zeros_like(peak)
        return self._stretched(scales_of(torch.where(peak > 0, peak, own)), "input_stretch")

    def _stretched(self, scales: Tensor, name: str) -> Tensor:
        if not self.settings.learned:
            return scales
        stretch: Tensor = getattr(self, name).to(scales.device)
        factor = (stretch.detach() if self.frozen else stretch).exp()
        return (scales * factor).clamp(min=SMALLEST_SCALE)

    @torch.no_grad()
    def final(self) -> Ranges:
        """Return the scales as the int8 layer takes them."""
        return Ranges(self.weight_scales(self._layer[0].weight), self.input_scale(self.input_peak))
