"""Counting parameters, those in packed layers included."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from mudpuppy.quant.linear4bit import find_4bit


class ParameterCount(NamedTuple):
    """How many numbers a model holds."""

    trainable: int
    """Those that require a gradient."""
    total: int
    """All of them; a packed weight counts with its dense shape."""


def count_parameters(model: nn.Module) -> ParameterCount:
    """Return the numbers of trainable and of all parameters."""
    packed = sum(
        layer.in_features * layer.out_features
        for layer in find_4bit(model).values()
        if layer.is_packed
    )
    return ParameterCount(
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total=sum(p.numel() for p in model.parameters()) + packed,
    )
