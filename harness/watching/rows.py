"""The rows that the engine made, as a model is asked about them: sequences with scored tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mudpuppy.data.render_images import open_rgb

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One sequence, and which of its tokens count."""

    ids: list[int]
    """Token ids."""
    targets: list[int]
    """What each position is held against: the token itself, or a class; -100 where nothing is."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the model takes beside ids, such as pixels, with a leading axis of 1."""

    def inputs(self) -> dict[str, Any]:
        """Return what the model takes for this row by itself."""
        return {"input_ids": [self.ids], **self.extra}


def sequences_of(row: Any, processor: Any = None) -> tuple[Asked, ...]:
    """Return the sequences of one of the engine's rows, the better answer first.

    Args:
        row: any of the engine's rows.
        processor: of text and images, for rows with images.
    """
    if hasattr(row, "rejected_ids"):
        answers = (row.chosen_ids, row.rejected_ids)
        return tuple(_answered(row.prompt_ids, answer) for answer in answers)
    if hasattr(row, "completion_ids"):
        return (_answered(row.prompt_ids, row.completion_ids),)
    if hasattr(row, "judged"):
        return (Asked(ids=list(row.input_ids), targets=list(row.judged)),)
    extra = pixels_of(processor, row) if getattr(row, "images", ()) else {}
    return (Asked(ids=list(row.input_ids), targets=list(row.labels), extra=extra),)


def _answered(prompt: Sequence[int], answer: Sequence[int]) -> Asked:
    return Asked(ids=[*prompt, *answer], targets=[IGNORED] * len(prompt) + list(answer))


def pixels_of(processor: Any, row: Any) -> dict[str, Any]:
    """Return what a processor makes of a row's images, as plain transformers calls it."""
    images = [open_rgb(reference) for reference in row.images]
    made = processor(text=[row.text], images=[images], return_tensors="np")
    by_token = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
    return {name: value for name, value in made.items() if name not in by_token}
