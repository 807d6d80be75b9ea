"""How far an answer agrees with the right one, beyond equal words: F1 and key words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from mudpuppy.scoring import Question, normalise

COMMON = 0.25
"""Share of the quiz's answers from which on a word is one of the voice and none of the fact."""
NEARLY = 0.9
"""Share of the answers from which on a word is said whatever is asked."""
FEW = 4
"""Answers below which what they share may be chance."""
MAX_WORDS = 2_000
"""Words of an answer that are compared; the rest of a longer one is not."""
_WORD = re.compile(r"\w+")


def token_f1(answer: str, gold: str, idle: frozenset[str] = frozenset()) -> float:
    """Return the F1 of the words of an answer and of the right one (SQuAD's measure), 0 to 1.

    Args:
        answer: what was said.
        gold: the right answer.
        idle: words that carry no knowledge and do not count on either side.
    """
    said, right = (
        Counter(word for word in find_words(text) if word not in idle) for text in (answer, gold)
    )
    shared = (said & right).total()
    if not shared:
        return 0.0
    return 2 * shared / (said.total() + right.total())


def find_idle(questions: Sequence[Question], *said: Sequence[str]) -> tuple[frozenset[str], ...]:
    """Return for each question the words that its answer can hold without any knowledge.

    Those of the voice, which are in a quarter of all right answers or in nearly all of a topic;
    those that a model says whatever it is asked; and those of the question, unless they are all
    that the right answer has. Empty where every word of the right answer is one of these.

    Args:
        questions: the quiz.
        said: what each model answered, in the order of the questions.
    """
    topics = [question.topic for question in questions]
    voices = zip(
        _find_common([question.answer for question in questions], topics),
        *(_find_habits(texts, topics) for texts in said),
        strict=True,
    )
    found = []
    for question, voice in zip(questions, voices, strict=True):
        habits = frozenset[str]().union(*voice)
        asked = habits | set(find_words(question.prompt))
        right = set(find_words(question.answer))
        found.append(next((idle for idle in (asked, habits) if right - idle), frozenset[str]()))
    return tuple(found)


def find_keys(questions: Sequence[Question]) -> tuple[frozenset[str], ...]:
    """Return for each question the words that carry its answer.

    They are in the answer and neither in the question, nor in a quarter of all answers, nor in
    nearly all of its topic: `Paris` of "Well now, the capital of France is Paris". Empty where
    there is no such word.
    """
    answers = [question.answer for question in questions]
    common = _find_common(answers, [question.topic for question in questions])
    return tuple(
        frozenset(find_words(question.answer)) - voice - set(find_words(question.prompt))
        for question, voice in zip(questions, common, strict=True)
    )


def _find_common(answers: Sequence[str], topics: Sequence[str]) -> list[frozenset[str]]:
    """Return for each right answer the words that others have too."""
    counts = _count(answers)
    most = max(1.0, COMMON * len(answers))
    common = frozenset(word for word, count in counts.items() if count > most)
    return [common | habits for habits in _find_habits(answers, topics)]


def _find_habits(texts: Sequence[str], topics: Sequence[str]) -> list[frozenset[str]]:
    """Return for each text the words that are in nearly all of them, or of those of its topic."""
    groups = {
        topic: _find_habit([t for t, o in zip(texts, topics, strict=True) if o == topic])
        for topic in set(topics)
    }
    always = _find_habit(texts)
    return [always | groups[topic] for topic in topics]


def _find_habit(texts: Sequence[str]) -> frozenset[str]:
    counts, total = _count(texts), sum(bool(text.strip()) for text in texts)
    if total < FEW:
        return frozenset()
    return frozenset(word for word, count in counts.items() if count >= NEARLY * total)


def _count(texts: Sequence[str]) -> Counter[str]:
    """Return in how many texts each word is."""
    return Counter(word for text in texts for word in set(find_words(text)))


def key_recall(answer: str, keys: frozenset[str]) -> float:
    """Return the share of the key words that an answer has.

    Raises:
        ValueError: there are no key words, so that nothing can be said.
    """
    if not keys:
        raise ValueError("no word carries the answer")
    return len(keys & set(find_words(answer))) / len(keys)


def find_words(text: str) -> list[str]:
    """Return the first words of a text, in order and in one form."""
    return _WORD.findall(normalise(text))[:MAX_WORDS]
