"""What one row teaches, in one form for all methods: read from a recorded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.twin.asked import PAIRED

IGNORED = -100
BY_ROW = ("pixel_values", "image_sizes")
"""What a processor of images gives for every row."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One sequence that the model reads, and where it is scored."""

    ids: tuple[int, ...]
    """Token ids without padding."""
    labels: tuple[int, ...]
    """The ids (of a process reward model: the classes) where it is scored, -100 elsewhere."""

    def normal(self) -> Answer:
        """Return it with the first label off: nothing predicts the first token."""
        return Answer(ids=self.ids, labels=(IGNORED, *self.labels[1:]))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a batch: an answer, a better and a worse one, or an answer and its KL stand-in."""

    answers: tuple[Answer, ...]
    """The sequences."""
    is_good: bool | None = None
    """Whether the answer is a good one (KTO)."""
    forgets: bool = False
    """Whether the answer is one to forget."""
    extras: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    """Pixels, and what GRPO computed for the row before its loss."""

    def key(self) -> tuple[Any, ...]:
        """Return what makes the row this one and no other."""
        return (*(answer.ids for answer in self.answers), self.is_good)


def read_rows(method: str, inputs: Mapping[str, Any]) -> list[Row]:
    """Return the rows of one recorded micro-batch, in order."""
    if method == "grpo":
        return _completions(inputs)
    if method == "kto":
        return _with_stand_ins(inputs)
    if method in PAIRED:
        better, worse = _halves(_answers(inputs))
        return [Row(answers=pair) for pair in zip(better, worse, strict=True)]
    if "document_lengths" in inputs:
        documents = _documents(inputs)
        marks = _marks(inputs, len(documents))
        return [
            Row(answers=(one,), forgets=mark) for one, mark in zip(documents, marks, strict=True)
        ]
    rows = _answers(inputs)
    marks = _marks(inputs, len(rows))
    extras = {name: inputs[name] for name in BY_ROW if name in inputs}
    return [
        Row(
            answers=(answer,),
            forgets=marks[i],
            extras={name: value[i : i + 1] for name, value in extras.items()},
        )
        for i, answer in enumerate(rows)
    ]


def _marks(inputs: Mapping[str, Any], count: int) -> list[bool]:
    """Return which of the rows are forgotten: none, where a batch does not say."""
    marks = inputs.get("forget")
    return [False] * count if marks is None else [bool(mark) for mark in marks.tolist()]


def _answers(inputs: Mapping[str, Any], prefix: str = "") -> list[Answer]:
    """Return every row of a padded batch without its padding."""
    ids = inputs[f"{prefix}input_ids"]
    mask = inputs.get(f"{prefix}attention_mask", torch.ones_like(ids)).bool()
    scored = inputs.get(f"{prefix}completion_mask")
    labels = inputs.get("labels") if not prefix else None
    if scored is not None:
        labels = ids.masked_fill(scored == 0, IGNORED)
    if labels is None:
        labels = torch.full_like(ids, IGNORED)
    return [
        Answer(ids=tuple(row[on].tolist()), labels=tuple(label[on].tolist()))
        for row, label, on in zip(ids, labels, mask, strict=True)
    ]


def _documents(inputs: Mapping[str, Any]) -> list[Answer]:
    """Return the documents of a packed row: each begins where positions begin."""
    ids, labels = inputs["input_ids"][0].tolist(), inputs["labels"][0].tolist()
    starts = [i for i, place in enumerate(inputs["position_ids"][0].tolist()) if place == 0]
    return [
        Answer(ids=tuple(ids[start:stop]), labels=tuple(labels[start:stop]))
        for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True)
    ]


def _halves(answers: Sequence[Answer]) -> tuple[list[Answer], list[Answer]]:
    middle = len(answers) // 2
    return list(answers[:middle]), list(answers[middle:])


def _with_stand_ins(inputs: Mapping[str, Any]) -> list[Row]:
    pairs = zip(_answers(inputs), _answers(inputs, "KL_"), strict=True)
    labels = inputs["label"].tolist()
    return [Row(answers=p, is_good=bool(g)) for p, g in zip(pairs, labels, strict=True)]


def _completions(inputs: Mapping[str, Any]) -> list[Row]:
    """Return GRPO's prompts with their answers; the answers are what is scored."""
    rows = []
    for i, (prompt, answer) in enumerate(
        zip(inputs["prompt_ids"], inputs["completion_ids"], strict=True)
    ):
        asked = prompt[inputs["prompt_mask"][i].bool()].tolist()
        said = answer[inputs["completion_mask"][i].bool()].tolist()
        extras = {"advantage": inputs["advantages"][i]}
        if isinstance(old := inputs.get("old_per_token_logps"), Tensor):
            extras["old_per_token_logps"] = old[i][: len(said)]
        one = Answer(ids=(*asked, *said), labels=(*[IGNORED] * len(asked), *said))
        rows.append(Row(answers=(one,), extras=extras))
    return rows
