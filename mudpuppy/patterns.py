"""Compile regular expressions from a stranger so that no text can make them hang.

Python's `re` backtracks, and a pattern such as `(a+)+$` takes exponential time. Here a group may
not be repeated, back references are refused, and the paths through the repetitions and alternatives
are counted: more than `MAX_STEPS` on the longest text, and the pattern is refused.
"""

from __future__ import annotations

import re

MAX_PATTERN_CHARS = 200
"""Longest regular expression."""
MAX_STEPS = 50_000_000
"""Steps that a search may take at worst, about a second."""

_GROUP_KINDS = ("?:", "?=", "?!")
_BOUNDS = re.compile(r"\{(\d*)(?:,(\d*))?\}")


def phrase_pattern(phrase: str) -> re.Pattern[str]:
    """Return a case-insensitive pattern for the words of `phrase`, whole words at both ends."""
    words = r"\s+".join(re.escape(word) for word in phrase.split())
    start = r"\b" if phrase.strip()[:1].isalnum() else ""
    end = r"\b" if phrase.strip()[-1:].isalnum() else ""
    return re.compile(start + words + end, re.IGNORECASE)


def compile_pattern(pattern: str, text_chars: int) -> re.Pattern[str]:
    """Compile `pattern`, case-insensitive, for texts of at most `text_chars` characters.

    Raises:
        ValueError: it is not a regular expression, or its worst case is too slow; says which part.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ValueError(f"longer than {MAX_PATTERN_CHARS} characters")
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except (re.error, RecursionError, OverflowError) as problem:
        raise ValueError(f"not a regular expression: {problem}") from problem
    steps = worst_steps(pattern, text_chars)
    if steps > MAX_STEPS:
        raise ValueError(
            f"may take {steps:.0e} steps on {text_chars} characters; "
            "bound its repetitions, for example {0,40} instead of *"
        )
    return compiled


def worst_steps(pattern: str, text_chars: int) -> int:
    """Return an upper bound on the paths that a search of a valid `pattern` tries.

    Raises:
        ValueError: the pattern repeats a group or refers back to one, so no bound is known.
    """
    paths, _ = _paths(pattern, 0, text_chars)
    return paths * text_chars


def _paths(pattern: str, place: int, text_chars: int) -> tuple[int, int]:
    """Return the paths through the expression at `place`, and where it ends.

    Parts that follow each other multiply, alternatives add up.
    """
    total, product = 0, 1
    while place < len(pattern) and pattern[place] != ")":
        if pattern[place] == "|":
            total, product, place = total + product, 1, place + 1
            continue
        is_group = pattern[place] == "("
        inner, place = 1, place + _token_width(pattern, place)
        if is_group:
            inner, end = _paths(pattern, place, text_chars)
            place = end + 1
        bound, width = _repetition(pattern, place, text_chars)
        if is_group and bound > 1:
            raise ValueError("a group may not be repeated; repeat a single character or class")
        # a repetition may stop after 0 to `bound` rounds
        product *= inner + bound if is_group else bound + 1
        place += width
    return total + product, place


def _repetition(pattern: str, place: int, text_chars: int) -> tuple[int, int]:
    """Return bound and width of the repetition at `place`, or (0, 0) when there is none."""
    char, bound, width = pattern[place : place + 1], text_chars, 1
    braces = _BOUNDS.match(pattern, place)
    if char == "{" and braces is not None and braces.group() != "{}":
        low, high = braces.groups()
        width = len(braces.group())
        if high is None:
            bound = int(low)
        elif high:
            bound = int(high)
    elif char == "?":
        bound = 1
    elif not char or char not in "*+":
        return 0, 0
    # a following `?` or `+` makes the repetition lazy or possessive and costs nothing more
    return bound, width + (pattern[place + width : place + width + 1] in ("?", "+"))


def _token_width(pattern: str, place: int) -> int:
    """Return the width of the atom at `place`: an escape, a class, a group opening, or one char."""
    char, after = pattern[place], pattern[place + 1 : place + 3]
    if char == "\\":
        if after[:1].isdigit() and after[:1] != "0":
            raise ValueError("a back reference is not allowed")
        return 2
    if char == "[":
        return _class_width(pattern, place)
    if char == "(" and after[:1] == "?":
        if after not in _GROUP_KINDS:
            raise ValueError(f"the group '({after}' is not allowed; use (?:, (?= or (?!")
        return 3
    return 1


def _class_width(pattern: str, place: int) -> int:
    end = place + 1 + (pattern[place + 1] == "^")
    end += pattern[end] == "]"  # a bracket that comes first is a member, not the end
    while pattern[end] != "]":
        end += 2 if pattern[end] == "\\" else 1
    return end + 1 - place
