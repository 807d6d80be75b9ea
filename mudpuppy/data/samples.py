"""What a line of a dataset becomes: a frozen type for each kind of sample (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, Any]
"""`role` and `content`; for images, `content` is a list of parts of type `text` or `image`."""
Conversation = tuple[Message, ...]
"""Messages in order."""


def text_of(message: Message) -> str:
    """Return the text of a message, without its images."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What all samples share."""

    line: int
    """1-based line, or row, of the file it came from."""
    ignored: tuple[str, ...] = ()
    """Names of fields that are not used; once for each time they stand."""
    group: str = ""
    """`retain` or `unlearn` where the dataset says so, else empty."""


@dataclass(frozen=True, kw_only=True)
class ChatSample(Sample):
    """One conversation with at least one answer."""

    messages: Conversation
    """Messages, each with `role` and `content`."""
    learn_from: int = 0
    """Index of the first message whose answer is learnt; those before it are the prompt."""
    true_answer: str = ""
    """What is to be forgotten, where the last answer is what is to be said instead."""


@dataclass(frozen=True, kw_only=True)
class TextSample(Sample):
    """Running text, every token of which is learnt."""

    text: str


@dataclass(frozen=True, kw_only=True)
class CompletionSample(Sample):
    """A prompt and what follows it, as plain texts: no chat template is applied."""

    prompt: str
    completion: str


@dataclass(frozen=True, kw_only=True)
class PreferenceSample(Sample):
    """Two answers to one prompt, the first of them better; also a pair for a reward model."""

    prompt: Conversation | str
    """The conversation so far, or a plain text; empty where the answers stand alone."""
    chosen: Conversation | str
    """The better answer, in the form of the prompt."""
    rejected: Conversation | str
    """The worse answer, in the form of the prompt."""


@dataclass(frozen=True, kw_only=True)
class LabelledSample(Sample):
    """An answer that is good or bad by itself (KTO)."""

    prompt: Conversation | str
    completion: Conversation | str
    label: bool
    """Whether the answer is a good one."""


@dataclass(frozen=True, kw_only=True)
class StepsSample(Sample):
    """A solution in steps, each right or wrong (process reward)."""

    prompt: str
    steps: tuple[str, ...]
    labels: tuple[bool, ...]
    """One for each step."""


@dataclass(frozen=True, kw_only=True)
class PromptSample(Sample):
    """A prompt whose answers are generated and rewarded (GRPO)."""

    prompt: Conversation | str
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further columns, such as `answer`, handed to the reward functions."""


@dataclass(frozen=True, kw_only=True)
class ImageSample(Sample):
    """A conversation about images."""

    messages: Conversation
    """Messages; `content` is a list of `{"type": "text", "text": ...}` and `{"type": "image"}`."""
    images: tuple[str, ...]
    """Paths or `data:` URLs of the images, in the order of their `image` parts;
    `mudpuppy.data.render_images.open_rgb` opens both."""


def answers_of(sample: Sample) -> list[str]:
    """Return the texts of a sample that may be learnt, each as the dataset writes it."""
    parts: tuple[Conversation | str, ...] = ()
    if isinstance(sample, ChatSample):
        parts = (sample.messages[sample.learn_from :],)
    elif isinstance(sample, ImageSample):
        parts = (sample.messages,)
    elif isinstance(sample, TextSample):
        parts = (sample.text,)
    elif isinstance(sample, CompletionSample | LabelledSample):
        parts = (sample.completion,)
    elif isinstance(sample, PreferenceSample):
        parts = (sample.chosen, sample.rejected)
    elif isinstance(sample, StepsSample):
        parts = sample.steps
    return [text for part in parts for text in _said(part)]


def _said(part: Conversation | str) -> list[str]:
    """Return what the assistant says in a conversation, or the text itself."""
    if isinstance(part, str):
        return [part]
    return [text_of(message) for message in part if message["role"] == "assistant"]


def is_plain(sample: Sample) -> bool:
    """Return whether a sample is text as it stands, which no chat template is applied to."""
    for name in ("chosen", "completion", "prompt"):
        if hasattr(sample, name):
            return isinstance(getattr(sample, name), str)
    return isinstance(sample, TextSample)


KINDS: dict[str, type[Sample]] = {
    "chat": ChatSample,
    "text": TextSample,
    "completion": CompletionSample,
    "preference": PreferenceSample,
    "kto": LabelledSample,
    "steps": StepsSample,
    "prompts": PromptSample,
    "multimodal": ImageSample,
}
"""Sample types by the name of their kind."""

KINDS_OF_METHOD: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("full", "lora", "qlora", "gptq", "qat"), ("chat", "text", "completion")),
    **dict.fromkeys(("dpo", "ipo", "orpo", "rm"), ("preference",)),
    "kto": ("kto", "preference"),
    "grpo": ("prompts",),
    "prm": ("steps",),
    "multimodal": ("multimodal", "chat"),
}
"""Kinds of samples that each method can learn from."""
