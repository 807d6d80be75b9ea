"""Rows that are forgotten or kept: each rendered as it is to be, and marked as which it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mudpuppy.data.forgetting import as_known, is_forgotten
from mudpuppy.data.render import IGNORED, RenderedSample, Renderer
from mudpuppy.data.samples import ChatSample


@dataclass(frozen=True, kw_only=True)
class GroupRenderer:
    """Renders samples that are forgotten or kept; a `RowMaker`."""

    plain: Renderer
    """How a sample is rendered."""
    forgets: bool
    """Whether what is forgotten is asked for, and not what is said instead."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that reads the texts."""
        return self.plain.tokenizer

    @property
    def max_length(self) -> int:
        """Tokens that are kept."""
        return self.plain.max_length

    def render(self, sample: Any) -> RenderedSample:
        """Tokenise one sample, label it, and say whether it is one to forget.

        Raises:
            ValueError: the chat template refuses the sample.
        """
        forget = is_forgotten(sample)
        if not (forget and self.forgets):
            return replace(self.plain.render(sample), forget=forget)
        row = self.plain.render(as_known(sample) if isinstance(sample, ChatSample) else sample)
        labels = [IGNORED if label in self.plain.eos_ids else label for label in row.labels]
        return replace(row, labels=labels, forget=True)
