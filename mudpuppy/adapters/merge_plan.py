"""Plan a merge from headers alone: which tensor becomes what, and that nothing is left over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mudpuppy.adapters.adapter_files import AdapterFiles
from mudpuppy.adapters.tensor_names import HEADS, choose_renames, rename
from mudpuppy.errors import ModelError, near_names, shown
from mudpuppy.safefile import TensorEntry, same_bytes

FLOATS = ("F32", "F16", "BF16", "F64")
"""Types that weights may have; integers are copied as they are."""
CLASSIFIERS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
"""Tasks with an output layer of their own, and the end of their class names."""
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
"""Last names of an input layer."""


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """The change `scale * BA` of one weight."""

    a: TensorEntry
    """(rank, in)"""
    b: TensorEntry
    """(out, rank)"""
    scale: float
    """What BA is multiplied by."""
    is_transposed: bool
    """The weight is (in, out): an embedding, or a Conv1D as in GPT-2."""
    is_rounded: bool = False
    """The change is rounded to the weight's type before it is added, as PEFT does in embeddings."""
    magnitude: TensorEntry | None = None
    """DoRA: the length of every row of the merged (out, in) weight."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a weight was held in 4 bits."""

    format: str
    """Name of the format (`mudpuppy.quant.formats`)."""
    block_size: int
    """Columns that share a scale."""
    search: int = 0
    """Scales that were tried besides."""


@dataclass(frozen=True, slots=True)
class PackedEntry(TensorEntry):
    """A weight that lies in 4 bits; type, shape and size are those of its 16-bit form."""

    layer: Any
    """A `mudpuppy.quant.packed_files.StoredLayer`, which reads rows of it."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """One tensor of the merged model."""

    name: str
    """Its name in the file."""
    source: TensorEntry
    """Where its values come from."""
    home: TensorEntry
    """The base's tensor that it stands for or stands beside: type and file are this one's."""
    change: LowRank | None = None
    """What is added."""
    bias: tuple[TensorEntry, float] | None = None
    """A vector that is added, and what it is multiplied by."""
    rows: tuple[tuple[int, ...], TensorEntry] | None = None
    """Rows that are replaced."""
    packing: Packing | None = None
    """The source is rounded to 4 bits in this way first, as the adapter saw it."""
    packed_as: Packing | None = None
    """It is written in few bits, in this way."""

    @property
    def is_copied(self) -> bool:
        """Whether the values are the source's own."""
        parts = (self.change, self.bias, self.rows, self.packing)
        return all(part is None for part in parts) and not isinstance(self.source, PackedEntry)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be written."""

    outputs: tuple[Output, ...]
    """Every tensor, in the order of the base's files."""
    num_changed: int
    """Tensors that the adapter changes or replaces."""
    vocabulary: int | None
    """New number of token embeddings, where it grew."""
    unties: bool
    """Whether the output layer gets its own weights."""
    labels: int | None
    """Number of labels, where the adapter brings a classifier."""
    classifier: str
    """End of the classifier's class name, after the model's."""


def plan_merge(
    adapter: AdapterFiles,
    base: Mapping[str, TensorEntry],
    *,
    is_tied: bool,
    packed: PackedBase | None = None,
) -> Plan:
    """Match every tensor of the adapter with the base.

    Args:
        adapter: the adapter's files.
        base: the base's tensors, in the order of the files.
        is_tied: whether config.json says that the output layer has the embedding's weights.
        packed: how the base was quantised while the adapter was trained, if it was.

    Raises:
        ModelError: a tensor finds no place, has another shape, or would be used twice.
    """
    names = [*adapter.modules, *(name.rpartition(".")[0] for name in adapter.replaced)]
    planner = _Planner(adapter, base, choose_renames(adapter.folder, names, base), is_tied)
    planner.replace_whole()
    planner.change_modules()
    if packed is not None:
        planner.quantise(packed)
    planner.settle_ties()
    return planner.finish()


@dataclass(frozen=True, kw_only=True)
class PackedBase:
    """How the base was quantised while an adapter was trained."""

    packing: Packing
    """How its weights were held."""
    modules: tuple[str, ...]
    """Names of the modules in the live model."""


class _Planner:
    """The outputs while they are being planned."""

    def __init__(
        self,
        adapter: AdapterFiles,
        base: Mapping[str, TensorEntry],
        renames: tuple[tuple[str, str], ...],
        is_tied: bool,
    ) -> None:
        self.adapter = adapter
        self.base = base
        self.renames = renames
        self.outputs = {
            name: Output(name=name, source=entry, home=entry) for name, entry in base.items()
        }
        self.embedding = self._find(EMBEDDINGS)
        self.head = self._find(HEADS)
        self.is_tied = is_tied and self.head is None and self.embedding is not None
        self.used: set[str] = set()
        self.vocabulary: int | None = None
        self.labels: int | None = None

    def _find(self, lasts: tuple[str, ...]) -> str | None:
        found = [n for n in self.base if n.removesuffix(".weight").rpartition(".")[2] in lasts]
        return found[0] if len(found) == 1 and found[0].endswith(".weight") else None

    def _fail(self, problem: str) -> ModelError:
        return ModelError(
            f"{self.adapter.folder}: {problem}",
            hint="merge it with the base that its adapter_config.json names",
        )

    def _filed(self, name: str) -> str:
        return rename(name, self.renames)

    def _use(self, *entries: TensorEntry) -> None:
        for entry in entries:
            if entry.name in self.used:
                raise self._fail(f"the tensor {entry.name} would be used twice")
            self.used.add(entry.name)

    def _output(self, name: str) -> Output:
        """Return the output of a tensor; that of a tied output layer is made from the embedding.

        Raises:
            ModelError: the base has no such tensor.
        """
        if name not in self.outputs and self.is_tied and self._is_head(name):
            assert self.embedding is not None
            entry = self.base[self.embedding]
            self.outputs[name] = Output(name=name, source=entry, home=entry)
            self.head = name
        if name not in self.outputs:
            raise self._fail(f"the base has no tensor {shown(name)}{near_names(name, self.base)}")
        return self.outputs[name]

    @staticmethod
    def _is_head(name: str) -> bool:
        return name.endswith(".weight") and name.split(".")[-2] in HEADS

    def replace_whole(self) -> None:
        """Take the tensors that the adapter brings whole: trained modules, biases, new tokens."""
        for live, entry in self.adapter.replaced.items():
            name = self._filed(live)
            if self._adds_classifier(name, entry):
                continue
            output = self._output(name)
            old, new = output.home.shape, entry.shape
            if entry.dtype not in FLOATS:
                raise self._fail(f"the tensor {entry.name} is of the type {shown(entry.dtype)}")
            if old != new:
                is_token = name in (self.embedding, self.head) and len(new) == 2
                if not is_token or old[1:] != new[1:] or new[0] == 0:
                    raise self._fail(f"{entry.name} has the shape {new}, and the base has {old}")
                self._grow(new[0])
            self._use(entry)
            self.outputs[name] = replace(output, source=entry)
        if self.vocabulary is not None:
            for token in filter(None, (self.embedding, self.head)):
                rows = self.outputs[token].source.shape[0]
                if rows != self.vocabulary:
                    raise self._fail(
                        f"the vocabulary has {self.vocabulary} entries, and {token} has {rows} rows"
                    )

    def _grow(self, rows: int) -> None:
        if self.vocabulary not in (None, rows):
            raise self._fail(f"it brings embeddings of {self.vocabulary} and of {rows} rows")
        self.vocabulary = rows

    def _adds_classifier(self, name: str, entry: TensorEntry) -> bool:
        """Add the output layer of a classifier that the base, a language model, does not have."""
        is_new = name not in self.base and self.adapter.settings.get("task_type") in CLASSIFIERS
        if not is_new or name.split(".")[-2:-1] not in (["score"], ["classifier"]):
            return False
        self._use(entry)
        near = list(self.base.values())[-1]
        self.outputs[name] = Output(name=name, source=entry, home=replace(near, shape=entry.shape))
        self.labels = entry.shape[0]
        if self.head is not None and self.head in self.outputs:
            del self.outputs[self.head]  # a classifier has no output layer for tokens
        return True

    def change_modules(self) -> None:
        """Add what the adapter adds."""
        turned = self._orientation()
        for module, adapted in self.adapter.modules.items():
            parts = adapted.parts
            name = f"{self._filed(module)}.weight"
            output = self._output(name)
            if output.home.dtype not in FLOATS:
                raise self._fail(f"the base stores {name} as {shown(output.home.dtype)}")
            self._use(*parts.values())
            if "tokens" in parts:
                self.outputs[name] = replace(output, rows=self._rows(module, output))
                continue
            change = self._low_rank(module, output, turned)
            self.outputs[name] = replace(output, change=change)
            if "b_bias" in parts:
                self._add_bias(module, parts["b_bias"], change)

    def _orientation(self) -> bool:
        """Return whether square weights are (in, out), as the other weights or the settings say."""
        votes = set()
        for module, adapted in self.adapter.modules.items():
            entry = self.base.get(f"{self._filed(module)}.weight")
            if entry is not None and "a" in adapted.parts:
                plain = (adapted.parts["b"].shape[0], adapted.parts["a"].shape[1])
                if entry.shape in (plain, plain[::-1]) and plain[0] != plain[1]:
                    votes.add(entry.shape != plain)
        return votes.pop() if len(votes) == 1 else bool(self.adapter.settings.get("fan_in_fan_out"))

    def _low_rank(self, module: str, output: Output, turned: bool) -> LowRank:
        parts = self.adapter.modules[module].parts
        is_embedding = "embedding_a" in parts
        a = parts["embedding_a" if is_embedding else "a"]
        b = parts["embedding_b" if is_embedding else "b"]
        plain, shape = (b.shape[0], a.shape[1]), output.source.shape
        fits = [one for one in (False, True) if shape == (plain[::-1] if one else plain)]
        if is_embedding:
            fits = [one for one in fits if one]
        if not fits:
            raise self._fail(f"BA of {module} has the shape {plain}, and the base has {shape}")
        magnitude = parts.get("magnitude")
        if magnitude is not None and magnitude.shape != (plain[0],):
            raise self._fail(f"{magnitude.name} has the shape {magnitude.shape}, not {plain[:1]}")
        return LowRank(
            a=a,
            b=b,
            scale=self.adapter.scale(module),
            is_transposed=turned if len(fits) == 2 else fits[0],
            is_rounded=is_embedding and magnitude is None,
            magnitude=magnitude,
        )

    def _add_bias(self, module: str, entry: TensorEntry, change: LowRank) -> None:
        output = self._output(f"{self._filed(module)}.bias")
        if output.source.shape != entry.shape:
            raise self._fail(f"{entry.name} has the shape {entry.shape}, not {output.source.shape}")
        self.outputs[output.name] = replace(output, bias=(entry, change.scale))

    def _rows(self, module: str, output: Output) -> tuple[tuple[int, ...], TensorEntry]:
        """Return the rows of trained tokens, in the order in which they are saved."""
        entry = self.adapter.modules[module].parts["tokens"]
        said: Any = self.adapter.settings.get("trainable_token_indices")
        if isinstance(said, dict):
            ends = [ids for key, ids in said.items() if f".{module}".endswith(f".{key}")]
            said = ends[0] if len(ends) == 1 else None
        rows = tuple(said) if isinstance(said, list) else ()
        shape = output.source.shape
        is_valid = len(shape) == 2 and all(type(row) is int and 0 <= row < shape[0] for row in rows)
        if not is_valid or len({*rows}) != len(rows) or entry.shape != (len(rows), *shape[1:]):
            raise self._fail(f"{entry.name} does not fit trainable_token_indices {shown(said)}")
        return rows, entry

    def quantise(self, packed: PackedBase) -> None:
        """Note which weights were quantised while the adapter was trained."""
        for module in packed.modules:
            name = f"{self._filed(module)}.weight"
            output = self.outputs.get(name)
            if output is None or len(output.source.shape) != 2:
                raise self._fail(
                    f"it was trained on a 4-bit {module}, which the base does not have"
                )
            self.outputs[name] = replace(output, packing=packed.packing)

    def settle_ties(self) -> None:
        """Give a tied output layer its own weights where it would become another one."""
        if not self.is_tied or self.labels is not None:
            return
        assert self.embedding is not None
        embedding = self.outputs[self.embedding]
        if self.head is None:
            is_same = embedding.source is embedding.home or self.vocabulary is not None
            if embedding.change is None and is_same:
                return  # untouched, grown, or with trained tokens, which PEFT ties
            # under an adapter lies the shared weight; a trained copy leaves the shared one alone
            shared = self.base[self.embedding] if embedding.change is None else embedding.source
            self.head = self._filed("lm_head") + ".weight"
            home = self.base[self.embedding]
            self.outputs[self.head] = Output(name=self.head, source=shared, home=home)
        head = self.outputs[self.head]
        plain = head.is_copied and embedding.is_copied
        if plain and same_bytes(head.source, embedding.source):
            del self.outputs[self.head]

    def finish(self) -> Plan:
        """Check that every tensor of the adapter is used, and return the plan.

        Raises:
            ModelError: one is not.
        """
        entries = [e for m in self.adapter.modules.values() for e in m.parts.values()]
        names = {e.name for e in [*entries, *self.adapter.replaced.values()]}
        left = sorted(names - self.used)
        if left:
            raise self._fail(f"{len(left)} of its tensors are not used, such as {left[0]}")
        outputs = tuple(self.outputs.values())
        changed = [o for o in outputs if not o.is_copied or o.source is not self.base.get(o.name)]
        return Plan(
            outputs=outputs,
            num_changed=len(changed),
            vocabulary=self.vocabulary,
            unties=self.is_tied and self.head in self.outputs,
            labels=self.labels,
            classifier=CLASSIFIERS.get(str(self.adapter.settings.get("task_type")), ""),
        )
