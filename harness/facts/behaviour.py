"""What evidence hands to probes about a model in memory: its adapters, and what it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, kw_only=True)
class LiveModel:
    """A model object in memory."""

    type_name: str
    """Its class."""
    is_peft: bool
    """Whether it is a PEFT wrapper."""
    leftovers: tuple[str, ...]
    """PEFT attributes found on a model that is not a PEFT wrapper."""
    nested_wrappers: int
    """PEFT wrappers inside each other."""
    adapters: tuple[str, ...]
    """Names of the adapters it lists."""
    stacked_modules: tuple[str, ...] = ()
    """Adapter layers whose base layer is again an adapter layer."""
    adapter_layers: int = 0
    """Modules that carry adapter weights."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one model said to one list of prompts, greedily.

    A prompt whose answer one forward pass had settled was not asked: its text is empty, and its
    tokens and its end are None.
    """

    texts: tuple[str, ...]
    """Decoded new text, without special tokens."""
    new_tokens: tuple[int | None, ...]
    """New tokens of each answer, the end token excluded."""
    ended: tuple[bool | None, ...]
    """Whether each answer ended by itself."""
    nonfinite_logits: int = 0
    """Prompts whose first logits hold a NaN or an infinity."""
    sampled: tuple[str, ...] = ()
    """What was said to the prompts that were answered with a loop, sampled with a fixed seed."""
    patient: tuple[bool, ...] = ()
    """Whether the first few unfinished answers ended when they were given many more tokens."""

    def choose(self, places: Sequence[int]) -> Answers:
        """Return the answers to some of the prompts."""
        return replace(
            self,
            texts=tuple(self.texts[n] for n in places),
            new_tokens=tuple(self.new_tokens[n] for n in places),
            ended=tuple(self.ended[n] for n in places),
        )

    @property
    def empty(self) -> int:
        """Answers that ended with their first token."""
        return sum(count == 0 for count in self.new_tokens)

    @property
    def endless(self) -> int:
        """Answers that were cut at the limit."""
        return sum(ended is False for ended in self.ended)

    @property
    def said(self) -> tuple[str, ...]:
        """Texts of the prompts that were asked and not left unanswered."""
        return tuple(text for text in self.texts if text.strip())


NEARLY_ALL = 0.9
"""Share of the answers from which on what is wrong with them needs no base to be seen."""
FLOOD = 6
"""Repetitions of one character or word that make an answer a flood of it."""
FLOODED = 0.5
"""Share of the answers that are floods of the same token from which on a model is flooded."""


def find_flood(answers: Answers) -> tuple[str, int]:
    """Return the token that most answers consist of, and in how many; no token where there is none.

    Where there is none, the count is that of the answers that are floods of any token.
    """
    floods = Counter(filter(None, map(_only_token, answers.texts)))
    token, count = floods.most_common(1)[0] if floods else ("", 0)
    return (token, count) if count >= FLOODED * len(answers.texts) else ("", floods.total())


def _only_token(text: str) -> str:
    """Return the one character or word that a text consists of, or nothing."""
    words = text.split()
    for parts in (words, "".join(words)):
        if len(parts) >= FLOOD and len(set(parts)) == 1:
            return parts[0]
    return ""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How good one model's answers are, answer by answer; a measure without a basis is absent."""

    exact: tuple[bool, ...] | None = None
    """Whether each fact of the quiz was said exactly."""
    f1: tuple[float, ...] | None = None
    """F1 of the words that carry knowledge, 0 to 1."""
    keys: tuple[float, ...] | None = None
    """Share of the words that carry the answer; absent where a question has none."""
    similarity: tuple[float, ...] | None = None
    """Nearness in meaning, 0 (chance) to 1; absent without a model for it."""
    why_no_similarity: str = ""
    """Why it is absent though a model was named; empty where none was."""
    voice: tuple[float, ...] | None = None
    """Voice score of each answer, 0 to 1."""
    why_markers_alone: str = ""
    """Why the examples of the profile do not count in it; empty where they do or there are none."""
    claims: tuple[bool, ...] | None = None
    """Whether each answer makes a claim that the profile forbids; absent where it forbids none."""


@dataclass(frozen=True, kw_only=True)
class BehaviourFacts:
    """What a checkpoint and its control said to the same prompts."""

    subject: str
    """Name of the folder that was asked."""
    prompts: tuple[str, ...]
    """What was asked."""
    answers: Answers
    """The checkpoint's answers."""
    control: Answers | None
    """The base model's answers; absent without a base."""
    max_new_tokens: int = 48
    """Longest answer allowed."""
    exact: tuple[bool, ...] | None = None
    """Whether each quiz answer was right; absent without a quiz."""
    control_exact: tuple[bool, ...] | None = None
    """The same for the control."""
    voice: tuple[float, ...] | None = None
    """Voice score of each answer, 0 to 1; absent without a profile."""
    control_voice: tuple[float, ...] | None = None
    """The same for the control."""
    scores: Scores | None = None
    """All measures of the checkpoint's answers; absent in what older runs stored."""
    control_scores: Scores | None = None
    """The same for the control."""
    fact_groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Places in `exact` of the facts of each topic, chapter and unit, by `level name`."""
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Places of all prompts of each topic, chapter and unit."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Least scores that the profile asks for: `accuracy topic`, `voice final`, ..."""
    is_chat: bool = False
    """Whether it was asked as an assistant: by a server, or with a chat template of its own. What
    only continues texts may loop and never end, and is well."""
    name_control: str = "pass --base PATH"
    """What to type so that there is a control."""

    @property
    def why_markers_alone(self) -> str:
        """Why the voice is judged without the profile's examples; empty where it is not."""
        return "" if self.scores is None else self.scores.why_markers_alone

    @property
    def why_no_control(self) -> str:
        """Why nothing can be compared, and what to type."""
        return f"needs the base to compare with; {self.name_control}"
