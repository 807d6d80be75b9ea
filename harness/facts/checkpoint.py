"""What evidence hands to probes: plain, frozen facts about a checkpoint (standard library only)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WRAPPERS = re.compile(
    r"(?:^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)(?=\.|$)"
    r"|^(?:base_model\.model\.)?(module)(?=\.)|\.\d+\.(inner)(?=\.)|^(pretrained_model)(?=\.)"
)
"""Segments that compilers and parallel wrappers leave in tensor names."""


def find_wrapper(name: str) -> str:
    """Return the wrapper segment in a tensor name, such as `_orig_mod`, or an empty text."""
    # Each of them holds such a word, which is found in a fifth of the time.
    if not ("module" in name or "_orig_mod" in name or "inner" in name or "pretrained" in name):
        return ""
    found = WRAPPERS.search(name)
    return next((group for group in found.groups() if group), "") if found else ""


def strip_wrappers(name: str) -> str:
    """Return a tensor name without the segments of wrappers."""
    while segment := find_wrapper(name):
        name = re.sub(rf"(^|\.){segment}\.", r"\1", name, count=1)
    return name


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One tensor, as the header of its file describes it."""

    name: str
    """Key in the file."""
    dtype: str
    """Name of the safetensors format: `F32`, `BF16`, `F8_E4M3`, `U8`, ..."""
    shape: tuple[int, ...]
    """Sizes of the dimensions."""
    start: int
    """First byte, counted from the start of the file."""
    end: int
    """One past the last byte, counted from the start of the file."""
    file: str
    """File that holds it, relative to the subject."""

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """One file that holds, or should hold, weights."""

    name: str
    """Path relative to the subject."""
    size_bytes: int
    """Size on disk."""
    problem: str = ""
    """Empty when the header could be read; otherwise `empty`, `lfs-pointer`, `bad-header`,
    `huge-header`, `truncated`, `unreadable`, `unsupported` or `pickled`."""
    detail: str = ""
    """What exactly is wrong, as a phrase with numbers."""
    missing_bytes: int = 0
    """Bytes that the header promises beyond the end of the file."""
    tensors: tuple[Tensor, ...] = ()
    """Tensors of the header, in its order; those cut off are included."""
    kind: str = "safetensors"
    """Format: `safetensors`, `gguf` or `pickle`."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The index of a sharded checkpoint."""

    name: str
    """File name."""
    weight_map: Mapping[str, str] = field(default_factory=dict)
    """Tensor name to shard name, as written."""
    problem: str = ""
    """Why it cannot be used; empty when it can."""
    escaping: tuple[str, ...] = ()
    """Shard names that lead out of the folder; they are not opened."""
    missing: tuple[str, ...] = ()
    """Shards it names that are not there."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Inventory of one folder."""

    root: str
    """The folder."""
    names: tuple[str, ...]
    """Every plain file in it, sorted, without sub-folders."""
    weights: tuple[WeightFile, ...]
    """Files that loaders would open for the model's weights."""
    adapter: tuple[WeightFile, ...]
    """Files that hold adapter weights."""
    index: ShardIndex | None = None
    """The shard index that loaders would follow."""
    ignored_weights: tuple[str, ...] = ()
    """Weight files of the standard names that loaders would not open: leftovers of another save."""
    unreadable_json: Mapping[str, str] = field(default_factory=dict)
    """Configuration files that are not JSON objects, and why."""
    alone: bool = False
    """Whether one file was given, so that nothing is known of what belongs beside it."""
    unlisted: int = 0
    """Files of the folder beyond those that are listed, of which nothing is known."""

    @property
    def readable(self) -> tuple[WeightFile, ...]:
        """Weight files, of the model or the adapter, whose header could be read."""
        return tuple(f for f in (*self.weights, *self.adapter) if not f.problem)

    @property
    def is_gguf(self) -> bool:
        """Whether this is a model in GGUF form, which holds its settings itself."""
        return any(file.kind == "gguf" for file in self.weights)

    def lacks(self, name: str) -> str:
        """Return in a sentence that a file is not here."""
        if self.alone:
            return f"only a file was given, without {name}; examine its folder"
        return f"there is no {name}"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of a model, by header."""

    tensors: Mapping[str, Tensor]
    """Every tensor of the model's files, by name."""
    complete: bool
    """Whether every file could be read, so that an absent name really is absent."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The two factors of a LoRA on one module."""

    module: str
    """Module path in the base model, without PEFT's prefix."""
    a: Tensor | None
    """`lora_A` (rank x in), or `lora_embedding_A` (rank x rows)."""
    b: Tensor | None
    """`lora_B` (out x rank), or `lora_embedding_B` (columns x rank)."""
    magnitude: Tensor | None = None
    """DoRA's `lora_magnitude_vector`."""
    is_embedding: bool = False
    """Whether the factors are those of an embedding."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter: its settings and its tensors."""

    root: str
    """The folder."""
    settings: Mapping[str, Any]
    """`adapter_config.json`; empty when it cannot be read."""
    tensors: Mapping[str, Tensor]
    """Every tensor, by the key in the file."""
    pairs: tuple[Pair, ...]
    """LoRA factors by module, in name order."""
    replaced: Mapping[str, str]
    """Base tensor names that the adapter replaces or edits whole (modules_to_save, biases,
    trainable tokens), with the adapter's key."""
    unknown: tuple[str, ...]
    """Keys that are of no form that PEFT writes."""
    names: tuple[str, ...] = ()
    """Adapter names inside the keys; PEFT leaves them out when it saves."""

    @property
    def kind(self) -> str:
        """PEFT's type, such as `LORA`; empty when the settings do not say."""
        return str(self.settings.get("peft_type") or "")

    @property
    def is_lora(self) -> bool:
        """Whether its keys have LoRA's form; settings that say nothing are taken for LoRA's."""
        return self.kind in ("LORA", "ADALORA", "")


@dataclass(frozen=True, kw_only=True)
class Pickled:
    """One pickled file, listed without loading it."""

    calls: tuple[str, ...]
    """Functions and classes it names that are not known to be harmless, in order of first use."""
    problem: str = ""
    """Why it could not be listed to its end; empty when it could."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What one pass over the values of a tensor found."""

    tensor: Tensor
    """The tensor."""
    nonfinite: int
    """NaN and infinite values."""
    low: float
    """Smallest finite value."""
    high: float
    """Largest finite value."""
    trailing_zeros: int = 0
    """Zeros in an unbroken run at the end."""
    constant: float | None = None
    """The value that all elements have; None when there are several or it is not finite."""
    complete: bool = True
    """Whether all values were read, not a sample."""

    @property
    def abs_max(self) -> float:
        """Largest finite magnitude."""
        return max(abs(self.low), abs(self.high))

    @property
    def is_zero(self) -> bool:
        """Whether every value is exactly zero."""
        return self.abs_max == 0.0 and self.nonfinite == 0 and self.tensor.elements > 0


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Facts about a tokenizer, read without its library."""

    file: str
    """File the ids come from."""
    max_id: int
    """Largest id that it can emit."""
    max_token: str
    """The token with that id."""


@dataclass(frozen=True, kw_only=True)
class TiedPair:
    """An output head and the embedding that the configuration ties it to."""

    head: Tensor
    """The head in the file."""
    embedding: Tensor
    """The embedding in the file."""
    different: int
    """Values in which they differ."""
    base_head: str = ""
    """Name of the head of a base that is not tied, where this file holds none."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Every size of the vocabulary that the folder and, for adapters, its base give."""

    tokenizer: Tokenizer | None
    """The tokenizer of the folder."""
    declared: int | None
    """`vocab_size` of config.json."""
    rows: Mapping[str, int]
    """Rows of the embedding and of the head, by tensor name."""
    special: Mapping[str, int]
    """Special token ids of config.json and generation_config.json."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that a checkpoint was made from."""

    root: str
    """Its folder."""
    named_by: str
    """Where its path comes from: `--base`, `adapter_config.json`, `mudpuppy.json`."""
    config: Mapping[str, Any]
    """Its `config.json`."""
    tensors: Mapping[str, Tensor]
    """Its tensors, by name."""


@dataclass(frozen=True, kw_only=True)
class ModuleLineage:
    """How one merged module follows from its base and its adapter."""

    module: str
    """Module path."""
    k: float
    """<merged - base, D> / <D, D> with D the adapter's change: 1 merged, 0 not, 2 twice."""
    residual: float
    """|merged - base - k D| / |D|."""
    noise: float
    """The same residual as rounding alone would leave."""
    k_error: float
    """Uncertainty of k from rounding (one standard deviation)."""
    resolvable: bool
    """Whether the adapter's change is large enough to survive the rounding of the merged type."""

    @property
    def has_no_effect(self) -> bool:
        """Whether k is 0: 0.05 is below a scale that anyone forgot, and k_error what noise does."""
        return abs(self.k) < 0.05 + 3 * self.k_error

    @property
    def is_doubled(self) -> bool:
        """Whether k is 2, within a tenth and three standard deviations."""
        return abs(self.k - 2) < 0.1 + 3 * self.k_error

    @property
    def is_foreign(self) -> bool:
        """Whether most of it is neither the base's nor the change's: the rest outweighs both."""
        return self.residual > 0.5 + 3 * self.noise

    @property
    def k_margin(self) -> float:
        """How far k may be from 1: roundings of k itself stay below 0.05 and four deviations."""
        return 0.05 + 4 * self.k_error


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """A merged model against base + adapter."""

    base: str
    """Folder of the base."""
    adapter: str
    """Folder of the adapter."""
    modules: tuple[ModuleLineage, ...]
    """Adapted modules that could be compared, in name order."""
    not_compared: Mapping[str, str]
    """Adapted modules that could not be, and why."""
    reference: str
    """What stands for the base: `base` or `quantised base`."""
    plain_base_fits: bool = False
    """With a quantised reference: whether the merged model follows the unquantised base instead."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far one tensor is from the tensor of the same name in the base."""

    name: str
    """Tensor name."""
    relative: float
    """|tensor - base| / |base|, infinite values excluded."""
    tolerance: float
    """What rounding between the two types can account for."""
    norm_ratio: float
    """|tensor| / |base|."""
    is_target: bool = False
    """Whether training was meant to change it."""

    @property
    def cosine(self) -> float:
        """Cosine of the angle to the base: 1 where it is the base, near 0 where it is unrelated."""
        if not (math.isfinite(self.relative) and 0 < self.norm_ratio < math.inf):
            return math.nan
        return (1 + self.norm_ratio**2 - self.relative**2) / (2 * self.norm_ratio)


@dataclass(frozen=True, kw_only=True)
class Drifts:
    """Every tensor that checkpoint and base share."""

    base: str
    """Folder of the base."""
    tensors: tuple[Drift, ...]
    """In name order."""
    shape_changed: Mapping[str, str]
    """Tensors whose shapes differ, and how."""
    identical: bool
    """Whether every shared tensor is equal byte for byte, and none is missing on either side."""
    same_names: bool = True
    """Whether none is missing on either side."""
