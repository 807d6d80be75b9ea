"""Score answers without a model: exact match, refusals, and how far a text keeps a voice.

Two files describe behaviour that a checkpoint must keep: a quiz (JSONL, one question a line) and a
voice profile (YAML). Both may come from strangers, so sizes are limited and a regular expression
whose worst case is slow is refused when the profile is read, not when it hangs.
Standard library and PyYAML only; nothing here starts torch.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mudpuppy.errors import ConfigError, DatasetError, near_names
from mudpuppy.patterns import compile_pattern, phrase_pattern

MAX_FILE_BYTES = 4_000_000
"""Largest quiz or profile that is read."""
MAX_TEXT_CHARS = 4_000
"""Longest text that is searched; the rest of a longer answer is not judged for its voice."""
MIN_EXAMPLES, MAX_EXAMPLES = 3, 256
"""How many texts show a voice: of fewer nobody can tell whether a model knows them apart."""
KINDS = ("fact", "post-cutoff", "chat")
"""What a question is for: knowledge, refusal, or conversation."""

_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})


@dataclass(frozen=True, kw_only=True)
class Question:
    """One line of a quiz."""

    id: str
    """Unique name of the question."""
    prompt: str
    """What the user says."""
    answer: str
    """The whole expected answer; for `post-cutoff` an example of a refusal."""
    topic: str
    """Subject, by which questions are grouped."""
    kind: str
    """One of `KINDS`."""
    chapter: str = ""
    """Chapter that the topic belongs to, when the quiz says so."""
    unit: str = ""
    """Unit that the chapter belongs to, when the quiz says so."""


@dataclass(frozen=True, kw_only=True)
class Markers:
    """Patterns of which any one counts, and what that is worth."""

    name: str
    """How reports call this family."""
    weight: float
    """Share (families) or deduction (negatives); positive."""
    patterns: tuple[re.Pattern[str], ...]
    """Compiled, case-insensitive, bounded patterns."""

    def found_in(self, text: str) -> bool:
        """Return whether any pattern occurs in `text`."""
        return _any_found(self.patterns, text)


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Texts in a voice, and texts in none, between which an embedding model tells others."""

    texts: tuple[str, ...]
    """In the voice."""
    neutral: tuple[str, ...] = ()
    """Without it; the built-in ones (`mudpuppy.similarity.NEUTRAL`) where there is none."""
    weight: float = 1.0
    """As that of a marker family."""


@dataclass(frozen=True, kw_only=True)
class VoiceProfile:
    """What marks a voice, what spoils it, and what it must never claim."""

    name: str
    """How reports call the voice."""
    families: tuple[Markers, ...]
    """Marker families; a text scores the weighted share that it shows."""
    negatives: tuple[Markers, ...] = ()
    """Each one found takes its weight off the score."""
    forbidden: tuple[re.Pattern[str], ...] = ()
    """Claims that make the score 0, whatever else the text holds."""
    refusals: tuple[re.Pattern[str], ...] = ()
    """Patterns of a refusal to answer."""
    similarity: Examples | None = None
    """What texts in the voice are like; counts only where an embedding model measures it."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Least scores, 0 to 1, by `accuracy topic`, `voice unit`, `voice final`, ..."""


def normalise(text: str) -> str:
    """Return `text` with form, case, quotes, spacing and the final full stop made equal."""
    folded = unicodedata.normalize("NFKC", text).translate(_QUOTES).casefold()
    return " ".join(folded.split()).rstrip(".!? ")


def exact_match(answer: str, gold: str) -> bool:
    """Return whether the whole answer says what `gold` says; an empty answer never does."""
    said = normalise(answer)
    return bool(said) and said == normalise(gold)


def score_voice(text: str, profile: VoiceProfile, near: float | None = None) -> float:
    """Return how far `text` keeps the voice, from 0 (not at all) to 1 (every marker family).

    Args:
        text: an answer.
        profile: the voice.
        near: how near the text is to the profile's examples, 0 to 1
            (`mudpuppy.similarity.measure_voice`); without it they do not count.
    """
    searched = text.strip()[:MAX_TEXT_CHARS]
    if not searched or _any_found(profile.forbidden, searched):
        return 0.0
    total = sum(family.weight for family in profile.families)
    shown = sum(family.weight for family in profile.families if family.found_in(searched))
    if near is not None and profile.similarity is not None:
        total += profile.similarity.weight
        shown += profile.similarity.weight * near
    spoilt = sum(bad.weight for bad in profile.negatives if bad.found_in(searched))
    return min(1.0, max(0.0, shown / total - spoilt))


def claims_forbidden(text: str, profile: VoiceProfile) -> bool:
    """Return whether `text` makes a claim that the profile forbids."""
    return _any_found(profile.forbidden, text.strip()[:MAX_TEXT_CHARS])


def mean_voice(texts: Iterable[str], profile: VoiceProfile) -> float:
    """Return the mean of `score_voice`.

    Raises:
        ValueError: there is no text; no answers is not a score of zero.
    """
    scores = [score_voice(text, profile) for text in texts]
    if not scores:
        raise ValueError("there are no answers to score")
    return sum(scores) / len(scores)


def is_refusal(text: str, patterns: VoiceProfile | Sequence[re.Pattern[str]]) -> bool:
    """Return whether `text` declines to answer, by a profile or by patterns of its own."""
    chosen = patterns.refusals if isinstance(patterns, VoiceProfile) else patterns
    return _any_found(chosen, text[:MAX_TEXT_CHARS].translate(_QUOTES))


def load_quiz(path: Path) -> tuple[Question, ...]:
    """Read a quiz: one JSON object a line with `id`, `prompt`, `answer`, `topic` and `kind`.

    Raises:
        DatasetError: the file or a line cannot be used; names the file and the line.
    """
    questions: dict[str, Question] = {}
    try:
        lines = _read(path).splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as problem:
        raise DatasetError(f"cannot be read: {problem}", file=str(path)) from problem
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question = _question(line, str(path), number)
        if question.id in questions:
            raise DatasetError(f"the id '{question.id}' is used twice", file=str(path), line=number)
        questions[question.id] = question
    if not questions:
        raise DatasetError("holds no question", file=str(path), hint="write one object a line")
    return tuple(questions.values())


def load_voice_profile(path: Path) -> VoiceProfile:
    """Read a voice profile from YAML.

    The keys are `name`, `families` and, if wanted, `negatives` (both lists of `name`, `weight`,
    `phrases`, `regexes`), `forbidden` and `refusals` (each `phrases` and `regexes`), `similarity`
    (`examples`, `neutral`, `weight`), and `thresholds` (`accuracy` and `voice`, each with `topic`,
    `chapter`, `unit` and `final`).

    Raises:
        ConfigError: the file cannot be read, or lists everything that is wrong with it.
    """
    import yaml  # here, as every start of the doctor imports this file

    try:
        value = yaml.safe_load(_read(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as problem:
        raise ConfigError([f"cannot be read: {problem}"], source=str(path)) from problem
    reader = _ProfileReader()
    profile = reader.profile(value)
    if reader.problems:
        raise ConfigError(reader.problems, source=str(path), hint=PROFILE_HINT)
    return profile


def _any_found(patterns: Iterable[re.Pattern[str]], text: str) -> bool:
    return any(pattern.search(text) for pattern in patterns)


def _read(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"it has {size} bytes, and at most {MAX_FILE_BYTES} are read")
    return path.read_text(encoding="utf-8")


def _question(line: str, file: str, number: int) -> Question:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as problem:
        raise DatasetError(f"is not JSON: {problem}", file=file, line=number) from problem
    if not isinstance(value, dict):
        raise DatasetError("is not a JSON object", file=file, line=number)
    fields: dict[str, str] = {}
    for name in ("id", "prompt", "answer", "topic", "kind"):
        text = value.get(name)
        if not isinstance(text, str) or not text.strip():
            message = f"the field '{name}' must be a text that is not empty, found {text!r:.80}"
            raise DatasetError(message, file=file, line=number)
        fields[name] = text
    if fields["kind"] not in KINDS:
        message = f"the kind '{fields['kind']}' is not one of {', '.join(KINDS)}"
        raise DatasetError(message + near_names(fields["kind"], KINDS), file=file, line=number)
    for name in ("chapter", "unit"):
        text = value.get(name, "")
        if not isinstance(text, str):
            message = f"the field '{name}' must be a text, found {text!r:.80}"
            raise DatasetError(message, file=file, line=number)
        fields[name] = text
    return Question(**fields)


class _ProfileReader:
    """Turns parsed YAML into a profile and collects every problem on the way."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def profile(self, value: Any) -> VoiceProfile:
        top = self._mapping(value, "the profile", PROFILE_KEYS)
        families = self._all_markers(top.get("families"), "families")
        if not families and not self.problems:
            self.problems.append("families: at least one marker family is needed")
        return VoiceProfile(
            name=str(top.get("name", "voice")),
            families=families,
            negatives=self._all_markers(top.get("negatives"), "negatives"),
            forbidden=self._patterns(top.get("forbidden"), "forbidden"),
            refusals=self._patterns(top.get("refusals"), "refusals"),
            similarity=self._similarity(top.get("similarity")),
            thresholds=self._thresholds(top.get("thresholds")),
        )

    def _similarity(self, value: Any) -> Examples | None:
        if value is None:
            return None
        fields = self._mapping(value, "similarity", ("examples", "neutral", "weight"))
        examples = self._examples(fields, "examples")
        neutral = self._examples(fields, "neutral") if "neutral" in fields else ()
        if {*map(normalise, examples)} & {*map(normalise, neutral)}:
            self.problems.append("similarity: a text is among the examples and the neutral ones")
        weight = self._weight(fields, "similarity")
        return Examples(texts=examples, neutral=neutral, weight=weight)

    def _examples(self, fields: Mapping[str, Any], key: str) -> tuple[str, ...]:
        found = {normalise(text): text for text in self._texts(fields, key, "similarity")}
        if not MIN_EXAMPLES <= len(found) <= MAX_EXAMPLES:
            self.problems.append(
                f"similarity.{key}: {MIN_EXAMPLES} to {MAX_EXAMPLES} different texts are expected, "
                f"found {len(found)}"
            )
        return tuple(text[:MAX_TEXT_CHARS] for text in found.values())

    def _thresholds(self, value: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        measures = self._mapping({} if value is None else value, "thresholds", MEASURES)
        for measure in MEASURES:
            where = f"thresholds.{measure}"
            levels = self._mapping(measures.get(measure, {}), where, LEVELS)
            for level in LEVELS:
                least = levels.get(level)
                if isinstance(least, bool) or not isinstance(least, int | float | None):
                    self.problems.append(f"{where}.{level}: a number is expected, found {least!r}")
                elif least is not None and not 0 <= least <= 1:
                    self.problems.append(f"{where}.{level}: 0 to 1 is expected, found {least!r}")
                elif least is not None:
                    found[f"{measure} {level}"] = float(least)
        return found

    def _all_markers(self, value: Any, where: str) -> tuple[Markers, ...]:
        if value is None:
            return ()
        if not isinstance(value, list):
            self.problems.append(f"{where}: a list is expected, found {type(value).__name__}")
            return ()
        return tuple(self._markers(item, f"{where}[{place}]") for place, item in enumerate(value))

    def _markers(self, value: Any, where: str) -> Markers:
        fields = self._mapping(value, where, ("name", "weight", "phrases", "regexes"))
        weight = self._weight(fields, where)
        patterns = self._patterns({k: v for k, v in fields.items() if k in _TEXTS}, where)
        if not patterns:
            self.problems.append(f"{where}: needs `phrases` or `regexes`")
        return Markers(name=str(fields.get("name", where)), weight=weight, patterns=patterns)

    def _weight(self, fields: Mapping[str, Any], where: str) -> float:
        weight = fields.get("weight", 1.0)
        if not isinstance(weight, bool) and isinstance(weight, int | float) and 0 < weight <= 1e6:
            return weight
        self.problems.append(f"{where}.weight: a positive number is expected, found {weight!r}")
        return 1.0

    def _patterns(self, value: Any, where: str) -> tuple[re.Pattern[str], ...]:
        fields = self._mapping({} if value is None else value, where, _TEXTS)
        compiled = [phrase_pattern(text) for text in self._texts(fields, "phrases", where)]
        for text in self._texts(fields, "regexes", where):
            try:
                compiled.append(compile_pattern(text, MAX_TEXT_CHARS))
            except ValueError as problem:
                self.problems.append(f"{where}.regexes: {text!r:.100}: {problem}")
        return tuple(compiled)

    def _texts(self, fields: Mapping[str, Any], key: str, where: str) -> list[str]:
        value = fields.get(key, [])
        if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
            return value
        self.problems.append(f"{where}.{key}: a list of texts that are not empty is expected")
        return []

    def _mapping(self, value: Any, where: str, known: Sequence[str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.problems.append(f"{where}: keys are expected ({', '.join(known)})")
            return {}
        for key in value:
            if key not in known:
                near = near_names(str(key), known)
                self.problems.append(f"{where}: unknown key '{key!s:.60}'{near}")
        return value


_TEXTS = ("phrases", "regexes")
PROFILE_KEYS = (
    *("name", "families", "negatives", "forbidden", "refusals", "similarity", "thresholds"),
)
"""What a profile may hold."""
PROFILE_HINT = (
    f"the keys are {', '.join(PROFILE_KEYS)}; the least that is one:\n"
    '    families: [{name: greeting, phrases: ["well now"]}]\n'
    '    forbidden: {phrases: ["as an ai"]}\n'
    "  docs/doctor.md describes them all"
)
"""What to type where a profile cannot be used."""
MEASURES = ("accuracy", "voice")
"""What a profile may set thresholds for."""
LEVELS = ("topic", "chapter", "unit", "final")
"""At which levels; `final` is all answers together."""
