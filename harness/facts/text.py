"""What texts look like from outside: do they go round in circles, and in which script are they?"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

REPEATS = 4
"""Repetitions of one sequence that make a loop; refrains and lists repeat two or three times."""
MAX_SIZE = 24
"""Longest repeated sequence that is looked for, in words."""
MIN_PHRASES = 24
"""Phrases of three words from which on their variety says anything."""
POOR = 0.35
"""Share of distinct phrases of three words below which a text is repetitive; prose has 0.9 or more,
songs and lists 0.5."""


def find_loop(text: str) -> str:
    """Return the sequence that the end of a text repeats `REPEATS` times or more, or nothing.

    The last repetition may be cut in the middle, as at a limit of tokens.
    """
    words = text.split() if " " in text.strip() else list(text.strip())
    for size in range(1, min(MAX_SIZE, len(words) // REPEATS) + 1):
        for cut in range(min(size, len(words) - size * REPEATS + 1)):
            whole = words[: len(words) - cut]
            unit = whole[-size:]
            if cut and not _begins(unit, words[-cut:]):
                continue
            # Four single characters ("....") are an ending, not a loop.
            is_long = size * REPEATS >= 8 or whole[-8:] == unit * 8
            if is_long and whole[-size * REPEATS :] == unit * REPEATS:
                return " ".join(unit)
    return ""


def is_repetitive(text: str) -> bool:
    """Whether a text is long and has few distinct phrases of three words (distinct-3)."""
    words = text.split()
    phrases = [tuple(words[n : n + 3]) for n in range(len(words) - 2)]
    return len(phrases) >= MIN_PHRASES and len(set(phrases)) < POOR * len(phrases)


def _begins(unit: Sequence[str], rest: Sequence[str]) -> bool:
    """Whether the rest is how the unit begins, its last word perhaps cut."""
    whole, last = rest[:-1], rest[-1]
    return list(whole) == list(unit[: len(whole)]) and unit[len(whole)].startswith(last)


def count_scripts(texts: Iterable[str]) -> Counter[str]:
    """Count letters by script: `LATIN`, `CYRILLIC`, `CJK`, ...; `?` is a broken character."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(filter(None, map(_script, text)))
    return counts


@cache
def _script(letter: str) -> str:
    """Return the script of a letter: the first word of its Unicode name; nothing for the rest."""
    if letter == "\ufffd":
        return "?"
    if not letter.isalpha():
        return ""
    first = unicodedata.name(letter, "?").partition(" ")[0].partition("-")[0]
    return ASIAN.get(first, first)


ASIAN = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "HANGUL": "CJK"}
"""Scripts that are written together."""
