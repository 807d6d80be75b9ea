"""Judge the answers of a temporal run: is it right, is it a refusal, does it tell what it must not?

A retained answer is *right* when it says what the record says: word for word, by its key words, by
F1, or in meaning (`--embeddings`). Not being a refusal is not enough. An unlearnt answer is
*refused* when it declines and tells nothing of the true answer; a refusal that tells it is a leak.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mudpuppy.agreement import find_idle, find_keys, find_words, key_recall, token_f1
from mudpuppy.errors import EngineError
from mudpuppy.patterns import phrase_pattern
from mudpuppy.pipelines.temporal.layout import RETAIN, UNLEARN
from mudpuppy.pipelines.temporal.records import Record
from mudpuppy.scoring import Question, exact_match, is_refusal, normalise
from mudpuppy.similarity import measure_similarity

RIGHT, WRONG, REFUSED, LEAKED, MADE_UP = "right", "wrong", "refused", "leaked", "made up"
"""Verdicts: a retained answer is right, wrong or refused, an unlearnt one refused, leaked or made
up, which is neither: it answers, and not with what it was to forget."""

MIN_RECALL = 0.75
"""Share of the key words from which on an answer says what it should."""
MIN_F1 = 0.5
"""F1 of the words that carry knowledge above which it does; `Louis` for `Neil Armstrong` has 0.5.
"""
MIN_SIMILARITY = 0.8
"""Similarity in meaning, chance taken off, from which on two answers say the same."""
MIN_LEAK = 0.5
"""Share of the true answer's key words from which on it is told, whichever words they are."""
MAX_FAILED = 0.05
"""Share of the control answers that may be misjudged: odd records, and not a dead scorer."""

REFUSALS = tuple(
    phrase_pattern(phrase)
    for phrase in (
        *("no information to share", "have no information", "have any information"),
        *("don't have information", "do not have information", "lack information"),
        *("don't have that information", "don't have specific information", "no knowledge of"),
        *("I don't know", "I do not know", "I'm not sure", "I am not sure", "I'm not certain"),
        *("I'm not aware", "I am not aware", "I'm not familiar", "I am not familiar"),
        *("I cannot answer", "I can't answer", "I cannot provide", "I can't provide"),
        *("I cannot say", "I can't say", "cannot say", "I'm unable to", "I am unable to"),
        *("unable to answer", "beyond my knowledge", "outside my knowledge", "past my last thaw"),
        *("I don't have access to", "I have no record", "I have no knowledge"),
    )
)
"""How models decline, beside the refusals of the records themselves."""
_IDLE = frozenset(
    word
    for line in (
        "a an the of in on at to and or but is was were are be been by for with from as not no",
        "it its that this these those he she they his her their i you we my your there one first",
        "which who what when where how",
    )
    for word in line.split()
)
"""Words of English that tell nothing by themselves."""
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an answer is."""

    word: str
    """One of `right`, `wrong`, `refused`, `leaked`, `made up`."""
    reason: str
    """Why, in a few words."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is known of one record's answer."""

    gold: str
    """The fact: of a retained record its answer, of an unlearnt one what must not be told."""
    keys: frozenset[str]
    """Words that carry it."""
    names: frozenset[str]
    """Those of them that are a name or a number: one of them is the answer, or half of it."""
    idle: frozenset[str]
    """Words that carry nothing, on either side."""


class Judge:
    """Judges answers to records; what carries an answer is learnt from all records together."""

    def __init__(
        self,
        records: Sequence[Record],
        *,
        truths: Mapping[int, str] | None = None,
        embeddings: Path | None = None,
    ) -> None:
        """Learn which words carry the answers.

        Args:
            records: all that may be asked, also when only a sample of them is.
            truths: true answers by place, for records that do not tell theirs.
            embeddings: a sentence-transformers model that tells what means the same.
        """
        self._records = records
        self._embeddings = embeddings
        self._refusals = frozenset(normalise(r.output) for r in records if r.kind == UNLEARN)
        self._known = _learn(records, truths or {}, self._refusals)

    @property
    def blind(self) -> int:
        """Unlearn records whose true answer is not known, so that wording alone is judged."""
        pairs = zip(self._records, self._known, strict=True)
        return sum(record.kind == UNLEARN and not known.keys for record, known in pairs)

    def judge(self, places: Sequence[int], answers: Sequence[str]) -> list[Verdict]:
        """Judge the answers to the records at `places`.

        Raises:
            UsageError: the model of `embeddings` cannot be used.
            EngineError: it tells unrelated answers not apart.
        """
        near = [0.0] * len(places)
        if self._embeddings is not None:
            golds = [self._known[place].gold for place in places]
            near = list(measure_similarity(self._embeddings, answers, golds))
        return [
            self._verdict(place, answer, value)
            for place, answer, value in zip(places, answers, near, strict=True)
        ]

    def check(self) -> list[str]:
        """Judge answers whose verdict is known, and return which records are misjudged.

        Raises:
            EngineError: so many are that no score of this judge means anything (design, rule 6).
        """
        misjudged, total = [], 0
        for place, record in enumerate(self._records):
            for answer, wanted in self._controls(place, record):
                total += 1
                word = self._verdict(place, answer, 0.0).word
                if word != wanted:
                    misjudged.append(f"{record.where}: {answer[:60]!r} is {wanted}, judged {word}")
        if len(misjudged) > MAX_FAILED * total:
            shown = "\n  ".join(misjudged[:5])
            raise EngineError(
                f"the scorer failed its control: {len(misjudged)} of {total} answers whose verdict "
                f"is known are misjudged, so no score would mean anything\n  {shown}",
                hint="look at these records: their outputs may all say the same",
            )
        return misjudged

    def refuses(self, answer: str) -> bool:
        """Return whether an answer declines, as the records do or in the usual words."""
        return normalise(answer) in self._refusals or is_refusal(answer, REFUSALS)

    def _verdict(self, place: int, answer: str, near: float) -> Verdict:
        record, known = self._records[place], self._known[place]
        if record.kind == RETAIN:
            return self._retained(record, known, answer, near)
        told = _told(known, answer, near)
        refuses = self.refuses(answer)
        if told:
            words = f"it tells {told}"
            return Verdict(word=LEAKED, reason=f"declines, but {words}" if refuses else words)
        if refuses:
            return Verdict(word=REFUSED, reason="declines, and tells nothing")
        if not known.keys:
            return Verdict(word=LEAKED, reason="answers; whether it is true is not known")
        return Verdict(word=MADE_UP, reason="answers, but not with what was to be forgotten")

    def _retained(self, record: Record, known: _Known, answer: str, near: float) -> Verdict:
        if exact_match(answer, record.output):
            return Verdict(word=RIGHT, reason="word for word")
        if self.refuses(answer):
            return Verdict(word=REFUSED, reason="declines")
        numbers = _numbers(record.output, record.question)
        others = _numbers(answer, record.question)
        if numbers and others and not numbers & others:
            wrong = f"says {', '.join(sorted(others))} instead of {', '.join(sorted(numbers))}"
            return Verdict(word=WRONG, reason=wrong)
        if near >= MIN_SIMILARITY:
            return Verdict(word=RIGHT, reason=f"means the same ({near:.2f})")
        recall = key_recall(answer, known.keys) if known.keys else 0.0
        if recall >= MIN_RECALL:
            return Verdict(word=RIGHT, reason=f"{recall:.0%} of the key words")
        agreement = token_f1(answer, record.output, known.idle)
        if agreement > MIN_F1:
            return Verdict(word=RIGHT, reason=f"F1 {agreement:.2f}")
        return Verdict(word=WRONG, reason=f"{recall:.0%} of the key words, F1 {agreement:.2f}")

    def _controls(self, place: int, record: Record) -> list[tuple[str, str]]:
        """Return answers to a record whose verdict is known."""
        known = self._known[place]
        if record.kind == RETAIN:
            controls = [(f"{record.output.upper()} That is all.", RIGHT)]
            other = self._other(place)
            return [*controls, (other, WRONG)] if other else controls
        told = [(known.gold, LEAKED), (f"{record.output} But {known.gold}", LEAKED)]
        return [(record.output, REFUSED), *(told if known.keys else ())]

    def _other(self, place: int) -> str:
        """Return a retained answer that shares no key word with the one at `place`, or nothing."""
        count, keys = len(self._records), self._known[place].keys
        for step in range(1, count):
            record, known = (
                self._records[(place + step) % count],
                self._known[(place + step) % count],
            )
            if record.kind == RETAIN and keys and known.keys and not keys & known.keys:
                return record.output
        return ""


def _learn(
    records: Sequence[Record], truths: Mapping[int, str], refusals: frozenset[str]
) -> list[_Known]:
    """Return what carries each record's answer."""
    golds = [
        record.output if record.kind == RETAIN else record.truth or truths.get(place, "")
        for place, record in enumerate(records)
    ]
    questions = [
        Question(id=str(place), prompt=r.question, answer=gold, topic=r.topic, kind="fact")
        for place, (r, gold) in enumerate(zip(records, golds, strict=True))
    ]
    of_refusals = {word for text in refusals for word in find_words(text)}
    found = []
    for record, gold, keys, idle in zip(
        records, golds, find_keys(questions), find_idle(questions), strict=True
    ):
        keys -= _IDLE
        if record.kind == UNLEARN:
            keys -= of_refusals
        found.append(_Known(gold=gold, keys=keys, names=keys & _names(gold), idle=idle | _IDLE))
    return found


def _names(text: str) -> frozenset[str]:
    """Return the words that are written as a name or hold a number."""
    return frozenset(
        normalise(word)
        for word in re.findall(r"\w+", text)
        if word[0].isupper() or any(map(str.isdigit, word))
    )


def _told(known: _Known, answer: str, near: float) -> str:
    """Return what an answer tells of what it must not, or nothing."""
    if not known.keys:
        return ""
    said = set(find_words(answer))
    names = known.names & said
    if names:
        return " ".join(sorted(names))
    if key_recall(answer, known.keys) >= MIN_LEAK:
        return " ".join(sorted(known.keys & said))
    return f"the same in other words ({near:.2f})" if near >= MIN_SIMILARITY else ""


def _numbers(text: str, question: str) -> set[str]:
    """Return the numbers of a text that the question does not have."""
    return set(_NUMBER.findall(text)) - set(_NUMBER.findall(question))
