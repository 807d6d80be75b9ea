"""Messages of a conversation: check them, and bring every spelling into one form.

Two spellings are read: `role` and `content` (chat), `from` and `value` (ShareGPT). A content is a
text, or a list of parts (`{"type": "text", "text": "..."}`, and images).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mudpuppy.data.problems import LineProblem, check_text, field_names, kind_of, near_fields
from mudpuppy.data.samples import Message, text_of
from mudpuppy.errors import near_names, shown

ROLES = ("system", "user", "assistant", "tool")
IMAGE_PARTS = ("image", "image_url")
"""Types of the parts that are images."""
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}


def read_messages(value: Any, where: str) -> tuple[list[Message], tuple[str, ...]]:
    """Return the messages of a list, and the names of their fields that are not used.

    A content stays a list where it is one; `plain` and `mudpuppy.data.images` take it from there.

    Raises:
        LineProblem: what was found instead of a message.
    """
    if not isinstance(value, list) or not value:
        raise LineProblem(f"'{where}' is {kind_of(value)} instead of a list with messages")
    messages = [_message(f"{where}[{index}]", message) for index, message in enumerate(value)]
    used = ("role", "content", "from", "value")
    return messages, tuple(
        name
        for message in value
        for name, one in message.items()
        if name not in used and one is not None
    )


def _message(where: str, message: Any) -> Message:
    """Check one message and return it with `role` and `content`."""
    if not isinstance(message, dict):
        raise LineProblem(f"{where} is {kind_of(message)} instead of an object")
    is_sharegpt = "from" in message and message.get("role") is None
    name, content_name = ("from", "value") if is_sharegpt else ("role", "content")
    known: Iterable[str] = _SHAREGPT_ROLES if is_sharegpt else ROLES
    role = message.get(name)
    if not isinstance(role, str) or role not in known:
        near = near_names(role, known) if isinstance(role, str) else ""
        raise LineProblem(
            f"{where}.{name} is {shown(role)}, expected one of {', '.join(known)}{near}"
        )
    if content_name not in message:
        near = near_fields(message, [content_name])
        raise LineProblem(f"{where} has no '{content_name}': found {field_names(message)}{near}")
    if message.get("tool_calls"):
        raise LineProblem(f"{where} has tool_calls, which cannot be trained yet: leave it out")
    content = message[content_name]
    if isinstance(content, list) and content:
        for index, part in enumerate(content):
            _check_part(f"{where}.{content_name}[{index}]", part)
    else:
        check_text(content, f"{where}.{content_name}", may_be_blank=True)
    return {"role": _SHAREGPT_ROLES[role] if is_sharegpt else role, "content": content}


def _check_part(where: str, part: Any) -> None:
    if not isinstance(part, dict):
        raise LineProblem(f"{where} is {kind_of(part)} instead of an object with a 'type'")
    kind = part.get("type")
    if kind == "text":
        check_text(part.get("text"), f"{where}.text", may_be_blank=True)
    elif kind not in IMAGE_PARTS:
        raise LineProblem(f"{where}.type is {shown(kind)}, expected 'text' or 'image'")


def has_image_parts(value: Any) -> bool:
    """Whether a list of messages, checked or not, has a part that is an image."""
    if not isinstance(value, list):
        return False
    contents = [message.get("content") for message in value if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(p, dict) and p.get("type") in IMAGE_PARTS for p in parts)


def plain(messages: Iterable[Message], where: str) -> tuple[Message, ...]:
    """Return the messages with texts as contents; the texts of several parts are joined.

    Raises:
        LineProblem: a part is an image.
    """
    result = []
    for index, message in enumerate(messages):
        content = message["content"]
        if not isinstance(content, str):
            if any(part["type"] != "text" for part in content):
                raise LineProblem(f"{where}[{index}].content has an image, which is not used here")
            content = "".join(part["text"] for part in content)
        result.append({"role": message["role"], "content": content})
    return tuple(result)


def require_answer(messages: Sequence[Message]) -> None:
    """Refuse a conversation in which the assistant says nothing.

    Raises:
        LineProblem: no assistant message has a text.
    """
    if not any(m["role"] == "assistant" and text_of(m).strip() for m in messages):
        raise LineProblem("no assistant message with text: there is nothing to learn from")
