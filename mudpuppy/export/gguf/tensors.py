"""What the tensors of a GGUF file are made of: names, shapes, sources and types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mudpuppy.safefile import TensorEntry

PLAIN = ("f32", "f16", "bf16", "q8_0")
"""What llama.cpp's converter writes by itself."""
MIXED = ("q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q3_k_m")
"""What takes its quantiser."""
QUANTS = (*PLAIN, *MIXED)
"""Names of `--quant`."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a stored tensor; a row is what lies along its last axis."""

    entry: TensorEntry
    """The stored tensor."""
    first: int
    """Its first row, all axes but the last counted as one."""
    rows: int
    """How many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One tensor of the file to be written."""

    name: str
    """Its name there, such as `blk.0.attn_q.weight`."""
    shape: tuple[int, ...]
    """Rows first, as in numpy; the file says it the other way round."""
    parts: tuple[Part, ...] = ()
    """Where its rows come from, in their order; empty where it is computed."""
    values: tuple[float, ...] = ()
    """What it holds where it is computed (fp32)."""
    heads: int = 0
    """Heads whose rows are reordered for the rotation of positions as llama.cpp does it; 0: none.
    """
    shift: float = 0.0
    """What is added to every value, in the stored type or fp32: Gemma's norms are stored less 1."""
    is_exact: bool = False
    """Whether it stays F32 whatever the file is quantised to: vectors, norms, routers, biases."""

    @property
    def columns(self) -> int:
        """Return the length of a row."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Return the number of rows, all axes but the last counted as one."""
        return math.prod(self.shape[:-1])

    @property
    def dtype(self) -> str:
        """Return the stored type as safetensors calls it; F32 where it is computed, or mixed."""
        found = {part.entry.dtype for part in self.parts}
        return found.pop() if len(found) == 1 else "F32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a file will hold, before its types are chosen; made of headers and settings only."""

    architecture: str
    """As llama.cpp calls it, such as `llama` or `qwen2moe`."""
    tensors: tuple[Planned, ...]
    """In the order in which they are written."""
    num_layers: int
    """Blocks."""
    num_heads: int
    """Heads of the queries."""
    num_kv_heads: int
    """Heads of the keys and values."""
    num_rows: int
    """Rows of the embedding: the vocabulary must have as many tokens."""
    num_experts: int = 0
    """Experts of a block; 0 where there are none."""
    is_tied: bool = False
    """Whether the embedding serves as the output layer, so that there is no `output.weight`."""
    metadata: tuple[tuple[str, Any], ...] = ()
    """Method of `gguf.GGUFWriter` without `add_`, and what it is given, such as
    (`"block_count"`, 32); in the order of the file."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Stored tensors that are not written, and why."""
    notes: tuple[str, ...] = ()
    """What a person should know before serving the file."""
