"""What evidence says of special tokens, rendered chats, stop tokens, rope and tokenizers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MARKER = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z][A-Z_]{1,30}\]")
"""What templates and tokenizers write special tokens like."""

BEGINS = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|im_start|>", "[BOS]", "<BOS>")
"""Texts of tokens with which texts begin, and never end."""


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The special tokens that the files of one tokenizer name, by role."""

    by_file: Mapping[str, Mapping[str, str]]
    """Role to text, by file, the file that counts first."""
    chosen: Mapping[str, str]
    """Role to text as loaders take it; defaults of the tokenizer's class included."""
    ids: Mapping[str, int]
    """Every token and its id."""
    special: frozenset[str]
    """Tokens that are added to the vocabulary, and those that have a role."""
    begins: tuple[str, ...]
    """Tokens that the post-processor writes before a text."""
    settings: Mapping[str, Any]
    """tokenizer_config.json."""

    def find_id(self, role: str) -> int | None:
        """Return the id of the token with a role; None when it has none."""
        return self.ids.get(self.chosen.get(role, ""))

    def is_special(self, number: int) -> bool:
        """Whether an id is that of no ordinary piece of text; true as well when no token has it."""
        text = next((t for t, n in self.ids.items() if n == number), None)
        return text is None or text in self.special or MARKER.fullmatch(text) is not None

    def name(self, number: int) -> str:
        """Return the text of a token, or its number where no token has that id."""
        return next((repr(t) for t, n in self.ids.items() if n == number), str(number))


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """One chat template, rendered with short conversations in a process of its own."""

    file: str
    """File that holds it."""
    texts: Mapping[str, str]
    """What it writes, by the name of the conversation."""
    raised: Mapping[str, str]
    """What it raises instead, by the name of the conversation."""
    refuses: frozenset[str] = frozenset()
    """Conversations that it refuses by `raise_exception`, which is its right."""
    problem: str = ""
    """Why nothing could be rendered at all; empty when something could."""


@dataclass(frozen=True, kw_only=True)
class Marker:
    """A text in angle or square brackets that a template writes between the messages."""

    text: str
    """The text."""
    number: int | None
    """Its id; None when the tokenizer splits it into pieces, be it that the vocabulary has it."""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """How the template that loaders take writes a conversation."""

    file: str
    """File that holds it."""
    problem: str = ""
    """Why nothing could be rendered; empty when something could."""
    raised: str = ""
    """What it raises for a plain question, unless it refuses by intent."""
    lost: tuple[str, ...] = ()
    """Roles whose words it leaves out; `order`, `speakers` or `once` where those are lost."""
    needed: str = ""
    """What stands between question and answer."""
    given: str = ""
    """What the generation prompt writes after the question."""
    has_prompt: bool = True
    """Whether `add_generation_prompt` changes anything."""
    ends: tuple[Marker, ...] = ()
    """Markers after the last answer, in order."""
    next_turn: Marker | None = None
    """First marker between an answer and the question after it."""
    knows_answer: bool = False
    """Whether an answer was rendered, so that what follows it is known."""
    begins: int = 0
    """Begin tokens that it writes one after the other at the start."""
    begin: str = ""
    """Text of the begin token."""
    markers: tuple[Marker, ...] = ()
    """Every marker that it writes, once each."""


@dataclass(frozen=True, kw_only=True)
class TemplatePlaces:
    """Where chat templates are, and where they should be."""

    files: tuple[str, ...]
    """Files that hold one, the one that counts first."""
    hashes: tuple[str, ...]
    """Their hashes as mudpuppy.json records them."""
    recorded: str
    """The hash of the template that was trained with; empty when none is recorded."""
    base: str
    """File of the base that holds one; empty without one."""
    turn_end: str
    """The tokenizer's end, where it ends turns and not texts; otherwise empty."""


@dataclass(frozen=True, kw_only=True)
class StopTokens:
    """Everything that may end an answer."""

    naming: Naming
    """Special tokens of the tokenizer."""
    end: int | None
    """Id of the tokenizer's eos_token."""
    config: tuple[int, ...] | None
    """`eos_token_id` of config.json; None when it does not say."""
    generation: tuple[int, ...] | None
    """`eos_token_id` of generation_config.json; None when it does not say."""
    has_generation: bool
    """Whether there is a generation_config.json."""
    chat: Chat | None
    """How the template ends an answer; None without one."""
    was_trained: bool
    """Whether something shows that the model was tuned, so that it ends as its template does."""
    generates: bool
    """Whether the model writes text, by its architecture."""
    model_type: str = ""
    """Family."""

    @property
    def effective(self) -> frozenset[int]:
        """The ids on which `generate` stops."""
        return frozenset(self.generation or self.config or ())

    @property
    def is_swapped(self) -> bool:
        """Whether a begin token stands where the end belongs, so that nothing else can be said."""
        naming = self.naming
        begin = naming.find_id("bos_token")
        texts = any(
            roles.get("eos_token") in BEGINS and roles.get("bos_token") != roles["eos_token"]
            for roles in naming.by_file.values()
        )
        alone = [ids for ids in (self.generation, self.config) if ids == (begin,)]
        return texts or (begin is not None and begin != self.end and bool(alone))


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions as one config.json declares them, in one dialect."""

    theta: float | None
    """The base of the frequencies; None when it is not written."""
    kind: str
    """`default`, `linear`, `yarn`, `llama3`, ...; other names of the same thing are replaced."""
    near_theta: float | None = None
    """The theta of layers that see only what is near, where layers differ."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The other settings: factor, original_max_position_embeddings, ..."""


@dataclass(frozen=True, kw_only=True)
class RopeFacts:
    """What a checkpoint and its base say of rotary positions."""

    new: Rope | None
    """`rope_parameters`, as transformers 5 writes them."""
    old: Rope | None
    """`rope_theta` and `rope_scaling`, as transformers 4 wrote them."""
    model_type: str
    """Family."""
    default_theta: float | None
    """What readers take for a theta that is not written; None where that is not known."""
    max_positions: int | None
    """`max_position_embeddings`."""
    vocab_size: int | None
    """`vocab_size`."""
    half_rotary: int | None
    """Half the rotated part of a head, in numbers; None where it is not known."""
    base: RopeFacts | None = None
    """The same of the base model; None without one."""

    @property
    def effective(self) -> Rope | None:
        """What transformers 5 computes with."""
        return self.new or self.old

    @property
    def theta(self) -> float | None:
        """The theta that is computed with."""
        known = self.effective
        return self.default_theta if known is None or known.theta is None else known.theta


@dataclass(frozen=True, kw_only=True)
class TokenizerChange:
    """How tokenizer.json differs from that of the base model."""

    base: str
    """Folder of the base."""
    tokens: int
    """Tokens that both have under the same id."""
    moved: Mapping[str, tuple[int, int]]
    """Some tokens that have another id now: that of the base, and the new one."""
    moved_count: int
    """How many have."""
    removed: tuple[str, ...]
    """Some tokens of the base that are gone, and whose id another token has or none."""
    removed_count: int
    """How many are."""
    renamed: Mapping[str, str]
    """Reserved tokens of the base whose id another text has, and that text."""
    added: int
    """Tokens that the base does not have."""
    merges: str
    """How the merges differ; empty when they do not."""
    parts: Mapping[str, tuple[str, str]]
    """Parts that cut texts in another way: that of the base, and the new one."""
    begins: tuple[tuple[str, ...], tuple[str, ...]]
    """Tokens written before a text: those of the base, and the new ones."""
    rebuilt_as: str = ""
    """The class that put its own rules in place of the base's, whose files name none of their own:
    loading the base does the same. Empty when that did not happen."""


@dataclass(frozen=True, kw_only=True)
class Clash:
    """Two sources that say different things about one token."""

    what: str
    """What they disagree about."""
    file: str
    """The file that is in the wrong, or the second one."""
    found: str
    """What it says."""
    expected: str
    """What the other says."""
    grave: bool = True
    """Whether loaders encode with another id because of it."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """How many parts config.json declares, and how many the files hold."""

    what: str
    """The parts, in the plural."""
    key: str
    """The setting that counts them."""
    declared: int
    """What it says."""
    stored: int
    """How many the files hold."""
    least: int
    """Fewest that fit the declaration."""
    most: int
    """Most that do."""
    tensor: str = ""
    """A tensor that shows it."""

    @property
    def fits(self) -> bool:
        """Whether both sides agree."""
        return self.least <= self.stored <= self.most


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """The token for what a tokenizer does not know."""

    kind: str
    """Type of the model inside tokenizer.json."""
    named: str
    """How it names the token: a text, or an id."""
    is_there: bool
    """Whether the vocabulary has it."""
