"""The built-in rewards of GRPO, written out from their documentation; no code of the engine.

exact-match   1 where the whole answer is the column `answer`, but for Unicode form (NFKC), case,
              kind of quotes, spacing, and full stops, ! and ? at the end; an empty one never is
length        64 / (64 + tokens): shorter is better; 0 where the answer says nothing
format        1 where it thinks between <think> and </think>, and says something after
end           1 where the last token is one that ends an answer
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Sequence
from typing import Any

HALF_AT = 64
"""Tokens of an answer that earns one half by its length."""
OPENING, CLOSING = "<think>", "</think>"
QUOTES = {"‘": "'", "’": "'", "“": '"', "”": '"'}

Reward = Callable[..., list[float]]


def find_built_in(name: str, eos_ids: Collection[int]) -> Reward | None:
    """Return a built-in reward by the name that a person gives it, or None: it is a function.

    Args:
        name: as in `--reward-funcs`.
        eos_ids: ids that end an answer.
    """

    def ends(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [1.0 if len(ids) and ids[-1] in eos_ids else 0.0 for ids in completion_ids]

    known: dict[str, Reward] = {
        "exact-match": _matches,
        "length": _is_short,
        "format": _thinks,
        "end": ends,
    }
    return known.get(name)


def _matches(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float]:
    wanted = [_plain(str(one)) for one in answer]
    said = [_plain(_text(one)) for one in completions]
    return [1.0 if x and x == y else 0.0 for x, y in zip(said, wanted, strict=True)]


def _is_short(
    completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **_: Any
) -> list[float]:
    pairs = zip(completions, completion_ids, strict=True)
    return [1 / (1 + len(ids) / HALF_AT) if _text(one).strip() else 0.0 for one, ids in pairs]


def _thinks(completions: Sequence[Any], **_: Any) -> list[float]:
    return [1.0 if _thinks_first(_text(one)) else 0.0 for one in completions]


def _thinks_first(text: str) -> bool:
    """Return whether a thought that is not empty comes first, and anything after it."""
    begun = text.lstrip()
    if not begun.startswith(OPENING):
        return False
    inside = begun[len(OPENING) :]
    closed = inside.find(CLOSING, 1)
    return closed > 0 and bool(inside[closed + len(CLOSING) :].strip())


def _plain(text: str) -> str:
    """Return a text without what does not count in a match."""
    same = "".join(QUOTES.get(letter, letter) for letter in unicodedata.normalize("NFKC", text))
    return " ".join(same.casefold().split()).rstrip(" .!?")


def _text(answer: Any) -> str:
    """Return an answer as text; of messages the last one's."""
    return answer if isinstance(answer, str) else str(answer[-1]["content"])
