"""What evidence says of layers that are stored in few bits, without loading them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Flaw:
    """One thing about a quantised layer that its format does not allow."""

    kind: str
    """`part`, `shape`, `scale`, `group`, `zero`, `table` or `block`."""
    what: str
    """What is wrong, as a noun phrase."""
    tensor: str
    """The tensor it is seen in."""
    found: Any = None
    """The value."""
    expected: Any = None
    """What the format asks for."""


@dataclass(frozen=True, kw_only=True)
class QuantisedLayer:
    """One layer in few bits."""

    name: str
    """Module path."""
    kind: str
    """`gptq`, `awq`, `bnb-4bit`, `bnb-8bit`, `scaled`, `mxfp4`, `mudpuppy-blocks` or
    `int4` (two levels a byte of an unknown format)."""
    bits: int
    """Bits of a level."""
    parts: tuple[str, ...]
    """Names of its tensors."""
    flaws: tuple[Flaw, ...] = ()
    """What its format does not allow."""
    zero: int | None = None
    """The zero level that is stored, when nearly all of its groups have the same."""
    scale: float | None = None
    """Mean of its finite scales; None where they are not numbers by themselves."""
    bias: float | None = None
    """Mean distance of its levels from the zero, as the declared format reads it, in levels."""


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """What is declared about few bits, and which layers have them, by names and types alone."""

    declared: Mapping[str, Any]
    """`quantization_config` or what stands in its place; empty without one."""
    source: str
    """File that declares it."""
    layers: Mapping[str, str]
    """Kind of every quantised layer, by module path: as in `QuantisedLayer`."""
    left_out: tuple[str, ...] = ()
    """Plain layers whose counterparts in other layers of the model are quantised, and which
    nothing declared takes out."""
    follows_patterns: bool = False
    """Whether what is declared chooses layers by patterns, which are not followed here."""


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """Every quantised layer of a model."""

    layers: tuple[QuantisedLayer, ...]
    """In name order."""
    declared: Mapping[str, Any] = field(default_factory=dict)
    """`quantization_config` or what lies beside the model in its place; empty without one."""
    source: str = ""
    """File that declares it."""

    @property
    def flaws(self) -> tuple[Flaw, ...]:
        """The flaws of all layers."""
        return tuple(flaw for layer in self.layers for flaw in layer.flaws)


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """How far a quantised layer is from the base's weight."""

    name: str
    """Module path."""
    bits: int
    """Bits of a level."""
    relative: float
    """|dequantised - base| / |base| over the outputs that were compared."""
    cosine: float
    """Of the angle between both; what is not finite leaves 0."""
    factor: float
    """The number that the base is multiplied with to be nearest; 1 where only noise was added."""
    direct: bool
    """Whether it was compared with the very weights that were rounded; else training may lie
    between, whose length nothing bounds."""
    dead: int
    """Inputs that have no weight left, where the base has some."""
    inputs: int
    """Inputs of the layer."""
