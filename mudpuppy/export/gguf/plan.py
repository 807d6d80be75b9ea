"""Plan a GGUF file from headers and settings alone: which stored tensor becomes what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mudpuppy.export.gguf.architectures import find_family
from mudpuppy.export.gguf.architectures.family import (
    Family,
    Row,
    Settings,
    find,
    refuse,
    sizes_of,
    whole,
)
from mudpuppy.export.gguf.refusals import ExportRefused
from mudpuppy.export.gguf.tensors import Part, Plan, Planned
from mudpuppy.safefile import TensorEntry, checkpoint_tensors, same_bytes

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types that weights may be stored in."""
COMPUTED = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
"""Ends of tensors that old checkpoints hold and every reader computes itself."""
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
MOST_NAMED = 3
"""Tensors that a message names; it counts the others."""


def make_plan(folder: Path, settings: Settings) -> Plan:
    """Return what the file of a model will hold; no tensor is read.

    Args:
        folder: with the safetensors of a model.
        settings: as `read_settings` returns them.

    Raises:
        ExportRefused: the architecture is unknown (MP-X01), weights and settings disagree
            (MP-X02), the settings cannot be said (MP-X03), or there are no weights (MP-X04).
    """
    family = find_family(settings)
    _check_activation(family, settings)
    stored = _stored(folder)
    blocks = whole(settings, "num_hidden_layers")
    if blocks > len(stored):  # else a number that is none would be counted to the end
        raise ExportRefused(
            "MP-X02",
            f"config.json: num_hidden_layers is {blocks:,}, and {folder} holds {len(stored):,} "
            "tensors",
            hint="take config.json and weights from the same model",
        )
    notes = tuple(family.check(settings))
    work = _Work(family, settings, stored)
    for row in family.rows:
        work.place(row)
    work.settle_head()
    work.raise_problems()
    metadata = dict(family.describe(settings))
    extra = [
        Planned(name=name, shape=(len(values),), values=values, is_exact=True)
        for name, values in family.extra(settings)
    ]
    # in the order of the checkpoint, so that it is read from front to back
    order = {name: place for place, name in enumerate(work.stored)}
    found = sorted(work.planned.values(), key=lambda one: order[work.names[one.parts[0].entry]])
    return Plan(
        architecture=family.name,
        tensors=(*extra, *found),
        num_layers=whole(settings, "num_hidden_layers"),
        num_heads=work.sizes["heads"],
        num_kv_heads=work.sizes["kv_heads"],
        num_rows=work.sizes["rows"],
        num_experts=work.sizes["experts"],
        is_tied=HEAD not in work.planned,
        metadata=tuple(metadata.items()),
        left_out=work.left_out,
        notes=notes,
    )


def _stored(folder: Path) -> dict[str, TensorEntry]:
    """Return the stored tensors."""
    try:
        found = checkpoint_tensors(folder)
    except (OSError, ValueError) as error:
        raise ExportRefused("MP-X02", str(error)) from error
    if not found:
        raise ExportRefused(
            "MP-X04",
            f"{folder} holds no safetensors weights",
            hint="save the model with save_pretrained of today's transformers",
        )
    return found


def _check_activation(family: Family, settings: Settings) -> None:
    named = find(settings, "hidden_activation", "hidden_act")
    same = {"silu": ("silu", "swish"), "gelu_pytorch_tanh": ("gelu_pytorch_tanh", "gelu")}
    if named not in same[family.activation]:
        raise refuse(
            f"config.json: the activation is {named}, and llama.cpp's {family.name} computes with "
            f"{family.activation}"
        )


@dataclass(slots=True)
class _Work:
    """The plan while it is made."""

    family: Family
    settings: Settings
    found: Mapping[str, TensorEntry]
    stored: dict[str, TensorEntry] = field(default_factory=dict)
    """By the names of a model for text alone."""
    names: dict[TensorEntry, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    planned: dict[str, Planned] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seen: set[TensorEntry] = field(default_factory=set)
    """Stored tensors that some row asks for."""

    def __post_init__(self) -> None:
        self.sizes = sizes_of(self.settings)
        for name, entry in self.found.items():
            plain = name.replace("language_model.", "", 1)
            if plain.removeprefix("model.").startswith(self.family.skipped or ("\0",)):
                self.left_out[name] = "it belongs to the part for pictures"
            elif name.endswith(COMPUTED):
                self.left_out[name] = "it is computed when the model is loaded"
            else:
                self.stored[plain] = entry
                self.names[entry] = plain

    def place(self, row: Row) -> None:
        """Plan all tensors of a kind."""
        has_blocks = "{block}" in row.name
        for block in range(whole(self.settings, "num_hidden_layers") if has_blocks else 1):
            parts = self._parts(row, block)
            if parts is None:
                continue
            name = row.name.format(block=block)
            shape = tuple(self.sizes[size] for size in row.shape)
            if "{expert}" in row.stored[0]:
                shape = (self.sizes["experts"], *shape)
            self.planned[name] = Planned(
                name=name,
                shape=shape,
                parts=parts,
                heads=self.sizes[row.heads] if row.heads else 0,
                shift=row.shift,
                is_exact=row.is_exact or len(shape) == 1 or name.endswith("_norm.weight"),
            )

    def _parts(self, row: Row, block: int) -> tuple[Part, ...] | None:
        """Return where a tensor's rows are; None where it is not there, or unfit."""
        shape = tuple(self.sizes[size] for size in row.shape)
        if "{expert}" not in row.stored[0]:
            candidates = [name.format(block=block) for name in row.stored]
            name = next((one for one in candidates if one in self.stored), "")
            if not name:
                if not row.is_optional:
                    self.problems.append(f"{candidates[0]} is missing")
                return None
            return self._whole([name], shape)
        names = [
            row.stored[0].format(block=block, expert=expert)
            for expert in range(self.sizes["experts"])
        ]
        fused = row.fused.format(block=block)
        for end in ("", ".weight"):
            if fused + end in self.stored:
                return self._halves(fused + end, shape, row.half)
        missing = [name for name in names if name not in self.stored]
        if missing:
            self.seen |= {self.stored[name] for name in names if name in self.stored}
            self.problems += [f"{name} is missing" for name in missing]
            return None
        return self._whole(names, shape)

    def _whole(self, names: list[str], shape: tuple[int, ...]) -> tuple[Part, ...] | None:
        """Return the parts of tensors that are taken whole, one after the other."""
        entries = [self.stored[name] for name in names]
        fit = [self._fits(name, entry, shape) for name, entry in zip(names, entries, strict=True)]
        rows = shape[0] if len(shape) > 1 else 1
        return tuple(Part(entry, 0, rows) for entry in entries) if all(fit) else None

    def _halves(
        self, name: str, shape: tuple[int, ...], half: int | None
    ) -> tuple[Part, ...] | None:
        """Return the parts of a tensor of all experts, of which each gives a half or all."""
        experts, rows = self.sizes["experts"], shape[0]
        each = rows if half is None else 2 * rows
        entry = self.stored[name]
        if not self._fits(name, entry, (experts, each, *shape[1:])):
            return None
        first = 0 if half is None else half * rows
        return tuple(Part(entry, expert * each + first, rows) for expert in range(experts))

    def _fits(self, name: str, entry: TensorEntry, shape: tuple[int, ...]) -> bool:
        self.seen.add(entry)
        if entry.dtype not in FLOATS:
            self.problems.append(f"{name} is stored as {entry.dtype}, not as floats")
        elif entry.shape != shape:
            self.problems.append(
                f"{name} has the shape {_by(entry.shape)}, and config.json makes it {_by(shape)}"
            )
        else:
            return True
        return False

    def settle_head(self) -> None:
        """Leave a tied output layer out, or write it where llama.cpp asks for one."""
        head, embedding = self.planned.get(HEAD), self.planned.get(EMBEDDING)
        if embedding is None:
            return
        own = None if head is None else head.parts[0].entry
        shared = embedding.parts[0].entry
        is_tied = bool(self.settings.get("tie_word_embeddings"))
        if own is not None and (is_tied or self.family.head == "never"):
            if not same_bytes(own, shared):
                why = (
                    "config.json ties it to the embedding (tie_word_embeddings)"
                    if is_tied
                    else f"llama.cpp's {self.family.name} has no output layer of its own"
                )
                self.problems.append(f"lm_head.weight differs from the embedding, and {why}")
            self.left_out[own.name] = "it is the embedding"
            del self.planned[HEAD]
        elif own is None and not is_tied:
            self.problems.append(
                "lm_head.weight is missing, and config.json does not tie it to the embedding"
            )
        if self.family.head == "required" and HEAD not in self.planned:
            self.planned[HEAD] = Planned(name=HEAD, shape=embedding.shape, parts=embedding.parts)

    def raise_problems(self) -> None:
        """Raise what was found, tensors without a place included.

        Raises:
            ExportRefused: MP-X02.
        """
        self.problems += [
            f"{name} has no place in llama.cpp's {self.family.name}"
            for name, entry in self.stored.items()
            if entry not in self.seen
        ]
        if self.problems:
            raise ExportRefused(
                "MP-X02",
                "weights and config.json disagree: " + "; ".join(_first(self.problems)),
                hint="mudpuppy-doctor says what happened to the checkpoint",
            )


def _first(problems: list[str]) -> Iterator[str]:
    yield from problems[:MOST_NAMED]
    if len(problems) > MOST_NAMED:
        yield f"and {len(problems) - MOST_NAMED:,} more"


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
