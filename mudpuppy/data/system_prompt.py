"""`--system-prompt`: what every conversation begins with that has no system message of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mudpuppy.config import TrainingConfig
from mudpuppy.data.samples import (
    ChatSample,
    Conversation,
    ImageSample,
    Message,
    Sample,
    StepsSample,
    is_plain,
)
from mudpuppy.errors import ConfigError


def with_system(samples: Sequence[Sample], text: str | None) -> tuple[Sample, ...]:
    """Return the samples with a system message in front where there is none.

    Args:
        samples: of any kind; plain texts stay as they are.
        text: the system prompt; None changes nothing.
    """
    return tuple(samples) if text is None else tuple(_with_system(one, text) for one in samples)


def _with_system(sample: Sample, text: str) -> Sample:
    if isinstance(sample, ChatSample | ImageSample):
        messages = _begin(sample.messages, text, isinstance(sample, ImageSample))
        changes: dict[str, Any] = {"messages": messages}
        if isinstance(sample, ChatSample) and sample.learn_from:  # counts the messages before
            changes["learn_from"] = sample.learn_from + len(messages) - len(sample.messages)
        return replace(sample, **changes)
    prompt = getattr(sample, "prompt", None)
    if isinstance(prompt, str) or prompt is None:
        return sample
    changes = {"prompt": _begin(prompt, text, False)}
    return replace(sample, **changes)


def _begin(messages: Conversation, text: str, in_parts: bool) -> Conversation:
    """Return a conversation that begins with a system message; its own one stays."""
    if messages and messages[0]["role"] == "system":
        return messages
    content: Any = [{"type": "text", "text": text}] if in_parts else text
    first: Message = {"role": "system", "content": content}
    return (first, *messages)


def require_conversations(samples: Sequence[Sample], config: TrainingConfig) -> None:
    """Refuse a system prompt for samples that are no conversations: nothing would say it.

    Raises:
        ConfigError: a sample is plain text.
    """
    if config.system_prompt is None:
        return
    plain = [one.line for one in samples if isinstance(one, StepsSample) or is_plain(one)]
    if plain:
        raise ConfigError(
            [
                f"--system-prompt: {len(plain)} of {len(samples)} samples are plain text and no "
                f"conversation (the first at line {plain[0]})"
            ],
            hint="write them as messages or as instruction and output (docs/data.md), or leave "
            "out --system-prompt",
        )
