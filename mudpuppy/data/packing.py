"""Sequence packing: samples share rows of max_length tokens, and batches have no padding.

Best fit, longest first: each sample goes into the fullest row that still holds it. A document's
first token is never a label, so nothing is predicted across documents; `position_ids` start again
with each document, and `document_lengths` tells attention where they end
(`mudpuppy.attention.documents`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from mudpuppy.data.render import IGNORED


class Labelled(Protocol):
    """A sample with token ids and labels."""

    @property
    def input_ids(self) -> list[int]:
        """Token ids."""

    @property
    def labels(self) -> list[int]:
        """The same ids where something is learnt, -100 elsewhere."""

    @property
    def truncated(self) -> bool:
        """Whether tokens were cut off."""


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """Several samples, one after the other."""

    input_ids: list[int]
    """Token ids of all of them."""
    labels: list[int]
    """Their labels; -100 at the first token of each."""
    lengths: list[int]
    """Tokens of each."""
    truncated: bool
    """Whether tokens of one of them were cut off."""
    forgets: list[bool] | None = None
    """Whether each is one to forget; None where nobody asks."""

    def columns(self) -> Mapping[str, Any]:
        """Return the columns that `collate_packed` takes, named as TRL names them."""
        flags = {} if self.forgets is None else {"forget": self.forgets}
        return {
            "input_ids": self.input_ids,
            "labels": self.labels,
            "seq_lengths": self.lengths,
            **flags,
        }


def plan_rows(lengths: Sequence[int], capacity: int, *, seed: int) -> list[list[int]]:
    """Return which samples share a row: every index once, no row above `capacity` tokens.

    The seed settles the order among samples of one length, so that neighbours in the file do not
    stay neighbours; the same seed gives the same rows.

    Raises:
        ValueError: a sample is empty, or longer than a row.
    """
    wrong = [length for length in lengths if not 1 <= length <= capacity]
    if wrong:
        raise ValueError(f"a sample of {wrong[0]} tokens does not fit into rows of {capacity}")
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda index: -lengths[index])
    rows: list[list[int]] = []
    by_space: dict[int, list[int]] = {}
    spaces = 0  # bit n is set while some row has n tokens left
    for index in order:
        length = lengths[index]
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = by_space[space].pop()
            if not by_space[space]:
                spaces &= ~(1 << space)
        else:
            space, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        by_space.setdefault(space - length, []).append(row)
        spaces |= 1 << (space - length)
    return rows


def pack(samples: Sequence[Labelled], capacity: int, *, seed: int) -> list[PackedRow]:
    """Put the samples into rows of at most `capacity` tokens.

    Raises:
        ValueError: a sample is empty, or longer than a row.
    """
    rows = plan_rows([len(sample.input_ids) for sample in samples], capacity, seed=seed)
    return [_join([samples[index] for index in row]) for row in rows]


def _join(samples: Sequence[Labelled]) -> PackedRow:
    """Write the samples one after the other."""
    flags = [getattr(sample, "forget", None) for sample in samples]
    return PackedRow(
        input_ids=[token for sample in samples for token in sample.input_ids],
        labels=[
            IGNORED if place == 0 else label
            for sample in samples
            for place, label in enumerate(sample.labels)
        ],
        lengths=[len(sample.input_ids) for sample in samples],
        truncated=any(sample.truncated for sample in samples),
        forgets=None if None in flags else [bool(flag) for flag in flags],
    )


def collate_packed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make one batch of packed rows: all their documents in one row, without padding.

    The longest documents come first: those of one length are attended to at once.

    Args:
        rows: the columns of `PackedRow`.

    Returns:
        `input_ids`, `labels` and `position_ids` of [1, tokens], and `document_lengths`, the
        tokens of each document in order; where rows are forgotten also `forget` of [documents].
    """
    documents: list[tuple[int, list[int], list[int], bool]] = []
    for row in rows:
        start = 0
        flags = row.get("forget") or [False] * len(row["seq_lengths"])
        for length, flag in zip(row["seq_lengths"], flags, strict=True):
            part = slice(start, start + length)
            documents.append((length, row["input_ids"][part], row["labels"][part], flag))
            start += length
    documents.sort(key=lambda document: -document[0])
    lengths = tuple(length for length, *_ in documents)
    batch: dict[str, Any] = {
        "input_ids": torch.tensor([[token for _, ids, _, _ in documents for token in ids]]),
        "labels": torch.tensor([[label for _, _, labels, _ in documents for label in labels]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "document_lengths": lengths,
    }
    if "forget" in rows[0]:
        batch["forget"] = torch.tensor([flag for *_, flag in documents])
    return batch
