"""Evidence about tokens that were added to a vocabulary: are their rows as they were made?

A fresh row is zero, or the mean of the others (`resize_token_embeddings` of transformers adds noise
of 3e-5 of their spread to it), or the same in every added token, or still that of the base.
Training moves all that takes part in it. Rows of pad and unknown tokens never do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.evidence.files.inventory import read_settings
from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.evidence.text.template import list_templates
from harness.evidence.text.vocabulary import EMBEDDING, HEAD
from harness.evidence.values.arrays import Floats, decode, iterate_rows, read_bytes
from harness.evidence.values.decodable import FLOATS
from harness.facts.chat import Naming
from harness.facts.checkpoint import Adapter, Base, Tensor, Weights
from harness.facts.weights import NewToken, NewTokens
from harness.registry import Missing, NotApplicable

MOST_TOKENS = 1_000
"""Tokens that are looked at."""
SAMPLED_ROWS = 512
"""Rows of old tokens that say how far from the mean a row usually is."""
NEAR_MEAN = 0.05
"""Distance from the mean, relative to the usual one, of a row that was made as the mean: noise and
the rounding of bf16 stay below 0.01."""
LEAST_ROWS = 32
"""Old rows that a mean needs."""
_IDLE = re.compile(r"pad|unk|unused|reserved|extra_id|placeholder|dummy", re.IGNORECASE)
_IDLE_ROLES = ("pad_token", "unk_token", "mask_token", "cls_token", "sep_token")
_USED_ROLES = ("eos_token", "bos_token")


@provides("new_tokens", Depth.WEIGHTS)
def examine_new_tokens(evidence: CheckpointEvidence) -> NewTokens:
    """Return the added tokens whose rows are as they were made.

    Raises:
        NotApplicable: no token was added.
        Missing: the rows are not here, or cannot be read.
    """
    naming: Naming = evidence.get("naming")
    added, known_by = _list_added(evidence, naming)
    if not added:
        raise NotApplicable(f"no token that takes part in training was added, by {known_by}")
    adapter: Adapter | None = evidence.find("adapter")
    taught = _taught_alone(adapter)
    ids = {text: naming.ids[text] for text in added if naming.ids[text] not in taught}
    if not ids:
        return NewTokens(judged=len(added), untrained=(), known_by=known_by)
    weights: Weights | None = evidence.find("weights")
    used = _list_used(evidence, naming)
    if weights is not None:
        tables = [t for name, t in weights.tensors.items() if _is_table(name, t)]
    elif adapter is not None:
        if known_by != _BASE:
            raise Missing(f"which tokens were added shows by the base; {_explain(evidence)}")
        untouched = _find_untouched(evidence, adapter, ids)
        if untouched is not None:
            tokens = [
                NewToken(
                    token=text,
                    number=ids[text],
                    tensor=untouched,
                    used=text in used,
                    reason="the adapter leaves the embedding as it is",
                )
                for text in ids
            ]
            return NewTokens(judged=len(added), untrained=tuple(tokens), known_by=known_by)
        tables = [
            adapter.tensors[key]
            for name, key in adapter.replaced.items()
            if _is_table(name, adapter.tensors[key]) and "token_adapter" not in key
        ]
    else:
        raise NotApplicable("the folder holds no rows of tokens")
    tables = [table for table in tables if max(ids.values()) < table.shape[0]]
    if not tables:
        raise Missing("the rows of the added tokens are not in this folder")
    found: dict[str, NewToken] = {}
    base: Base | None = evidence.find("base")
    for table in tables:
        old = None if base is None else base.tensors.get(table.name)
        judge = _Table(evidence.folder, table, ids, old, base)
        for text, reason in judge.find_untrained().items():
            found.setdefault(
                text,
                NewToken(
                    token=text,
                    number=ids[text],
                    tensor=table.name,
                    reason=reason,
                    used=text in used,
                ),
            )
    return NewTokens(judged=len(added), untrained=tuple(found.values()), known_by=known_by)


_BASE, _TEMPLATE = "the base's tokenizer", "the chat template"


def _explain(evidence: CheckpointEvidence) -> str:
    return str(evidence.get("why_no_base") or "its tokenizer cannot be read")


def _list_added(evidence: CheckpointEvidence, naming: Naming) -> tuple[list[str], str]:
    """Return the tokens to judge, and how it is known that they take part in training.

    With a base these are the tokens that it lacks. Without one, those of the added tokens that the
    chat template writes or that end a text: what else a family keeps ready may well be untrained.
    """
    idle = {naming.chosen.get(role) for role in _IDLE_ROLES}
    theirs: Mapping[str, int] | None = None
    base: CheckpointEvidence | None = evidence.find("base_evidence")
    if base is not None:
        theirs = base.find("token_ids")
    if theirs is not None:
        texts = [text for text in naming.ids if text not in theirs]
        known_by = _BASE
    else:
        used = _list_used(evidence, naming)
        texts = [text for text in _added_tokens(evidence) if text in used]
        known_by = _TEMPLATE
    chosen = [t for t in texts if t in naming.ids and t not in idle and not _IDLE.search(t)]
    return chosen[:MOST_TOKENS], known_by


def _taught_alone(adapter: Adapter | None) -> set[int]:
    """Return the tokens whose rows alone an adapter trains: it holds them, and says which."""
    settings = {} if adapter is None else adapter.settings
    told = settings.get("trainable_token_indices")
    lists = list(told.values()) if isinstance(told, dict) else [told]
    return {n for one in lists if isinstance(one, list) for n in one if type(n) is int}


def _added_tokens(evidence: CheckpointEvidence) -> list[str]:
    try:
        listed: Any = read_settings(evidence, "tokenizer.json").get("added_tokens")
    except Missing:
        return []
    entries = listed if isinstance(listed, list) else []
    texts = [one.get("content") for one in entries if isinstance(one, dict)]
    return [text for text in texts if isinstance(text, str) and text]


def _list_used(evidence: CheckpointEvidence, naming: Naming) -> set[str]:
    """Return the tokens that a chat template names, and those that begin and end texts."""
    texts = " ".join(text for _, _, text in list_templates(evidence))
    roles = {naming.chosen[role] for role in _USED_ROLES if role in naming.chosen}
    return roles | {text for text in _added_tokens(evidence) if text in texts}


def _is_table(name: str, tensor: Tensor) -> bool:
    is_named = EMBEDDING.search(name) is not None or HEAD.search(name) is not None
    return is_named and len(tensor.shape) == 2 and tensor.dtype in FLOATS


def _find_untouched(
    evidence: CheckpointEvidence, adapter: Adapter, ids: Mapping[str, int]
) -> str | None:
    """Return the base's embedding if it has the rows and an adapter trains none of them."""
    base: Base | None = evidence.find("base")
    if base is None or not adapter.is_lora:
        return None
    touched = [*adapter.replaced, *(f"{pair.module}.weight" for pair in adapter.pairs)]
    if any(EMBEDDING.search(name) or HEAD.search(name) for name in touched):
        return None
    tables = [t for name, t in base.tensors.items() if EMBEDDING.search(name)]
    fits = [t.name for t in tables if len(t.shape) == 2 and max(ids.values()) < t.shape[0]]
    return fits[0] if fits else None


@dataclass
class _Table:
    """An embedding or a head, and the rows in it that are asked about."""

    folder: Path
    table: Tensor
    ids: Mapping[str, int]
    old: Tensor | None
    base: Base | None
    mean: Floats = field(init=False)
    usual: float = field(init=False)

    def find_untrained(self) -> dict[str, str]:
        """Return the reason for every token whose row is as it was made."""
        self._measure()
        rows = {text: self._read(number) for text, number in self.ids.items()}
        texts: dict[bytes, list[str]] = {}
        for text, row in rows.items():
            texts.setdefault(row.tobytes(), []).append(text)
        found: dict[str, str] = {}
        for text, row in rows.items():
            twins = [other for other in texts[row.tobytes()] if other != text]
            if not row.any():
                found[text] = "zero"
            elif self.usual and float(np.linalg.norm(row - self.mean)) < NEAR_MEAN * self.usual:
                found[text] = "the mean of the other rows"
            elif twins:
                found[text] = f"equal to the row of {twins[0]}"
            elif self._is_the_bases(self.ids[text]):
                found[text] = "as in the base, which does not know the token"
        return found

    def _measure(self) -> None:
        """Take the mean of the old rows, and how far from it they usually are."""
        height, width = self.table.shape
        asked = np.zeros(height, np.bool_)
        asked[list(self.ids.values())] = True
        total = np.zeros(width, np.float64)
        first = 0
        for block in iterate_rows(self.folder, self.table):
            keep = ~asked[first : first + len(block)]
            total += block[keep].sum(axis=0, dtype=np.float64)
            first += len(block)
        plain = np.flatnonzero(~asked)
        self.mean = (total / max(1, plain.size)).astype(np.float32)
        self.usual = 0.0
        if plain.size >= LEAST_ROWS and np.isfinite(self.mean).all():
            chosen = plain[:: max(1, plain.size // SAMPLED_ROWS)]
            far = [float(np.linalg.norm(self._read(int(n)) - self.mean)) for n in chosen]
            self.usual = float(np.median(far))

    def _read(self, number: int) -> Floats:
        return _read_row(self.folder, self.table, number)

    def _is_the_bases(self, number: int) -> bool:
        old = self.old
        if old is None or self.base is None or old.shape[1:] != self.table.shape[1:]:
            return False
        if number >= old.shape[0] or old.dtype not in FLOATS:
            return False
        return bool(
            np.array_equal(_read_row(Path(self.base.root), old, number), self._read(number))
        )


def _read_row(folder: Path, table: Tensor, number: int) -> Floats:
    size = (table.end - table.start) // table.shape[0]
    return decode(read_bytes(folder, table, number * size, (number + 1) * size), table.dtype)
