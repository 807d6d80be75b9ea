"""The formats of a frozen base, written once more from their definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TIED = 1e-12
"""Levels whose distances differ by less are equally near."""
SEARCHED = (0.80, 1.04)
"""Shares of the full scale that a search lies between."""
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
"""Numbers of a 4-bit float; the even ones of them have an even last bit."""


def _normal_float() -> Tensor:
    """Return NF4's levels in bfloat16 (QLoRA, appendix E)."""
    outer = 1 - (1 / 30 + 1 / 32) / 2
    places = [torch.linspace(0.5, outer, n, dtype=torch.float64)[1:] for n in (8, 9)]
    below, above = (torch.special.ndtri(place) for place in places)
    none = torch.zeros(1, dtype=torch.float64)
    levels: Tensor = torch.cat([-below.flip(0), none, above]) / above.max()
    return levels.float().bfloat16().double()


NF4 = _normal_float()
EVEN = {"int4": 7, "int8": 127}
"""Largest level of the formats with evenly spaced ones."""


@torch.no_grad()
def round_to_4_bits(weight: Tensor, asked: Any) -> Tensor:
    """Return a weight (out, in) as a base holds it that is packed as the settings ask."""
    name = asked.quant or "nf4"
    block = asked.quant_block_size or (32 if name == "mxfp4" else 64)
    rows, columns = weight.shape
    blocks = functional.pad(weight.float(), (0, -columns % block)).view(-1, block)
    made = _in_mxfp4(blocks) if name == "mxfp4" else _in_levels(blocks, name, asked.quant_search)
    return made.view(rows, -1)[:, :columns].to(weight.dtype)


def _in_levels(blocks: Tensor, name: str, search: int) -> Tensor:
    full = blocks.abs().amax(dim=1, keepdim=True) / EVEN.get(name, 1)
    store: Callable[[Tensor], Tensor] = (lambda scale: scale) if name in EVEN else _cut_to_8_bits
    scale = store(full)
    least = _distance(blocks, scale, name)
    for step in range(search):
        share = SEARCHED[0] + (SEARCHED[1] - SEARCHED[0]) * (step + 0.5) / search
        tried = store(full * share)
        error = _distance(blocks, tried, name)
        scale = torch.where(error < least, tried, scale)
        least = torch.minimum(error, least)
    return _snap(blocks, scale, name)


def _cut_to_8_bits(scale: Tensor) -> Tensor:
    """Return the nearest numbers towards zero that have 8 significant bits, as bfloat16 has."""
    share, exponent = torch.frexp(scale)
    return torch.ldexp((share * 256).floor() / 256, exponent)


def _distance(blocks: Tensor, scale: Tensor, name: str) -> Tensor:
    return (blocks.double() - _snap(blocks, scale, name).double()).square().sum(1, keepdim=True)


def _snap(blocks: Tensor, scale: Tensor, name: str) -> Tensor:
    """Return the nearest multiples of `scale` that the format has; ties: even, or the lower."""
    steps = torch.where(scale == 0, 0.0, blocks / scale)
    if name in EVEN:
        return steps.round().clamp(-EVEN[name], EVEN[name]) * scale
    away = (steps.double().unsqueeze(-1) - NF4).abs()
    return NF4[(away <= away.amin(-1, keepdim=True) + TIED).int().argmax(-1)].float() * scale


def _in_mxfp4(blocks: Tensor) -> Tensor:
    peak = blocks.abs().amax(dim=1, keepdim=True).double()
    low = torch.where(peak == 0, 0.0, peak.log2().floor() - 2).clamp(-127, 125)
    found = []
    for exponent in (low, (low + 1).clamp(max=125)):
        sizes = blocks.double().abs() / 2**exponent
        away = (sizes.unsqueeze(-1) - E2M1).abs()
        odd = torch.arange(8) % 2 * TIED  # of two equally near ones the even one is taken
        nearest = E2M1[(away + odd).argmin(-1)]
        found.append((nearest * 2**exponent).copysign(blocks.double()))
    errors = [(blocks.double() - one).square().sum(1, keepdim=True) for one in found]
    return torch.where(errors[1] < errors[0], found[1], found[0]).float()
