"""Facts about the state of a model in memory: adapters per layer, hooks, devices, gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LiveLayer:
    """One module of a model that carries adapters."""

    name: str
    """Its path."""
    available: tuple[str, ...]
    """Adapters that it holds."""
    active: tuple[str, ...]
    """Adapters that it applies."""
    merged: tuple[str, ...]
    """Adapters that are in its weight already."""
    enabled: bool
    """Whether it applies adapters at all."""


@dataclass(frozen=True, kw_only=True)
class Hook:
    """A function that a module calls before or after its own."""

    module: str
    """Path of the module; empty for the model itself."""
    kind: str
    """`forward`, `forward pre`, `backward` or `backward pre`."""
    function: str
    """Module and name of the function."""


@dataclass(frozen=True, kw_only=True)
class LiveState:
    """The state of a model object, beyond its wrappers."""

    layers: tuple[LiveLayer, ...]
    """Modules that carry adapters."""
    strided: Mapping[str, str]
    """Parameters whose values do not lie one after the other, with their device."""
    hooks: tuple[Hook, ...]
    """Hooks that none of the usual libraries registered."""
    trainable_base: tuple[str, ...]
    """Weights of the base, inside adapted layers, that gradients would change."""
    parameters: int
    """Parameters of the model."""
    on_meta: tuple[str, ...]
    """Parameters without values."""
    devices: Mapping[str, int]
    """Parameters by device, where nothing moves them between devices."""
    mixed_types: Mapping[str, tuple[str, ...]]
    """Kinds of base weights that have another type in some layers, with the types."""
    untied: tuple[str, str] | None
    """Embedding and head that the configuration ties and that are two tensors here."""
    dropouts: tuple[str, ...]
    """Dropout modules of the base that are switched on."""
    is_training: bool
    """Whether the model itself is in training mode."""
