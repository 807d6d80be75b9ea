"""What an answer is, and who gives one: the interface of local and served models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model said to one prompt, greedily."""

    text: str
    """The words, without special tokens and without the spaces around them."""
    ended: bool | None
    """Whether it ended by itself; None where a server does not say."""
    tokens: int | None
    """New tokens; None where nobody counted."""
    seconds: float
    """Time it took; of a batch, its share."""


OnAnswer = Callable[[int, Answer], None]
"""Called with the number of a prompt, from 0, and the answer to it, as soon as there is one."""


class Answerer(Protocol):
    """Somebody who can be asked."""

    @property
    def name(self) -> str:
        """How headings call it."""

    @property
    def identity(self) -> Mapping[str, str]:
        """All that an answer depends on besides the prompt and the most new tokens."""

    def answer(
        self, prompts: Sequence[str], *, max_tokens: int, on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        """Answer every prompt by itself, as the first turn of a conversation, greedily.

        Args:
            prompts: what the user says.
            max_tokens: most new tokens of an answer.
            on_answer: told every answer at once; the order need not be that of the prompts.

        Raises:
            MudpuppyError: an answer cannot be had, and why; those before it were told.
        """
