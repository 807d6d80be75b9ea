"""What evidence says of a GGUF file: its settings, its vocabulary, its tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.facts.checkpoint import Tensor

LARGEST = 2**64
"""Numbers from here on, and what is no number, are not believed."""


@dataclass(frozen=True, kw_only=True)
class GgufArray:
    """An array of the settings, of which only what is needed is kept."""

    kind: str
    """Type of its elements: `string`, `int32`, `float32`, ..."""
    length: int
    """How many it has."""
    values: tuple[Any, ...] = ()
    """Its elements; empty for a long one that nothing needs."""


@dataclass(frozen=True, kw_only=True)
class TokenChanges:
    """The tokens of a GGUF model held against those of its base's tokenizer, number by number."""

    compared: int
    """Numbers that both have."""
    different: int
    """Numbers whose texts differ."""
    first: int = 0
    """The first of them."""
    found: str = ""
    """Its text in the GGUF model."""
    expected: str = ""
    """Its text in the base."""


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """The header of one GGUF file."""

    version: int = 0
    """Version of the format."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys and values: numbers, truths, texts, and `GgufArray`."""
    tensors: tuple[Tensor, ...] = ()
    """Tensors, shapes in the order of safetensors (rows first)."""
    problem: str = ""
    """As in `WeightFile`; also `unsupported`."""
    detail: str = ""
    """What exactly is wrong."""
    missing_bytes: int = 0
    """Bytes that the header promises beyond the end of the file."""


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """A model in GGUF form, one file or several."""

    files: tuple[str, ...]
    """Names of the files that are there, in order."""
    settings: Mapping[str, Any]
    """Settings of the first file."""
    tensors: Mapping[str, Tensor]
    """Tensors of all files, by name."""
    complete: bool
    """Whether every file is there and could be read, so that an absent tensor really is absent."""
    lost: tuple[str, ...] = ()
    """Files of the split that are not there."""

    @property
    def architecture(self) -> str:
        """`general.architecture`; empty when it is not a text."""
        return self.text("general.architecture")

    @property
    def is_model(self) -> bool:
        """Whether it holds a language model: no adapter, projector, vocabulary or imatrix."""
        kind = self.text("general.type") or "model"
        return kind == "model" and self.architecture not in ("clip", "") and bool(self.tensors)

    def text(self, key: str) -> str:
        """Return a setting that is a text; empty for any other."""
        value = self.settings.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> float | int | None:
        """Return a setting that is a finite number; `%` stands for the architecture."""
        value = self.settings.get(key.replace("%", self.architecture))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return value if abs(value) < LARGEST else None

    def array(self, key: str, kind: str = "") -> GgufArray | None:
        """Return a setting that is an array, of elements of a certain kind if one is named."""
        value = self.settings.get(key.replace("%", self.architecture))
        is_one = isinstance(value, GgufArray) and (not kind or value.kind == kind)
        return value if isinstance(value, GgufArray) and is_one else None
