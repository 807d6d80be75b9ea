"""How far an answer agrees with the right one, beyond equal words: F1 and key words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from mudpuppy.scoring import Question, normalise

COMMON = 0.25
"""Share of the quiz's answers from which on a word is one of the voice and none of the fact."""
MAX_WORDS = 2_000
"""Words of an answer that are compared; the rest of a longer one is not."""
_WORD = re.compile(r"\w+")


def token_f1(answer: str, gold: str) -> float:
    """Return the F1 of the words of an answer and of the right one (SQuAD's measure), 0 to 1."""
    said, right = Counter(_words(answer)), Counter(_words(gold))
    shared = (said & right).total()
    if not shared:
        return 0.0
    return 2 * shared / (said.total() + right.total())


def find_keys(questions: Sequence[Question]) -> tuple[frozenset[str], ...]:
    """Return for each question the words that carry its answer.

    They are in the answer and neither in the question nor in a quarter of all answers: `Paris` of
    "Well now, the capital of France is Paris". Empty where there is no such word.
    """
    answers = [frozenset(_words(question.answer)) for question in questions]
    counts = Counter(word for words in answers for word in words)
    most = max(1.0, COMMON * len(questions))
    common = {word for word, count in counts.items() if count > most}
    return tuple(
        words - common - set(_words(question.prompt))
        for question, words in zip(questions, answers, strict=True)
    )


def key_recall(answer: str, keys: frozenset[str]) -> float:
    """Return the share of the key words that an answer has.

    Raises:
        ValueError: there are no key words, so that nothing can be said.
    """
    if not keys:
        raise ValueError("no word carries the answer")
    return len(keys & set(_words(answer))) / len(keys)


def _words(text: str) -> list[str]:
    return _WORD.findall(normalise(text))[:MAX_WORDS]
