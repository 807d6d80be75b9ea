"""What an OpenAI-compatible server answers, in whatever dialect: its words as one `Reply`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

MAX_CHARS = 100_000
"""Longest answer that is kept."""


class EndpointProblem(Exception):
    """Why a request has no usable answer, in one line."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer of a server, or why there is none."""

    text: str = ""
    """What was said, a model's thoughts before the answer included."""
    finish: str = ""
    """The server's `finish_reason`; empty where it gave none."""
    tokens: int | None = None
    """New tokens, as the server counts them."""
    first_logprob: float | None = None
    """Log-probability of the first token, where the server offers it."""
    problem: str = ""
    """Why there is no answer; empty where there is one."""
    thinks: bool = False
    """Whether the server tells thoughts from what is said, and there are nothing but thoughts."""

    @property
    def is_said(self) -> bool:
        """Whether this is an answer, and not a thought that was cut before one."""
        is_open = self.text.lstrip().startswith("<think>") and "</think>" not in self.text
        return self.ended is not False or not (self.thinks or is_open)

    @property
    def ended(self) -> bool | None:
        """Whether the model ended by itself; None where the server does not say."""
        return {"stop": True, "eos": True, "end_turn": True, "length": False}.get(self.finish)


def parse_object(raw: bytes, kind: str) -> dict[str, Any]:
    """Return a body as the object that it is.

    Args:
        raw: the body.
        kind: its content type, for the message.

    Raises:
        EndpointProblem: it is no JSON object.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as problem:
        shown = kind.partition(";")[0][:60] or "of no type"
        raise EndpointProblem(f"the answer is {shown} and no JSON: {problem}"[:200]) from None
    if not isinstance(value, dict):
        raise EndpointProblem("the answer is no JSON object")
    return value


def join_stream(raw: bytes) -> dict[str, Any]:
    """Return an answer that was streamed though none was asked for, as one object.

    Raises:
        EndpointProblem: a line of it is no JSON object, or there is no answer in it.
    """
    text, finish = "", None
    for line in raw.split(b"\n"):
        data = line.strip().removeprefix(b"data:").strip()
        if not line.strip().startswith(b"data:") or data == b"[DONE]":
            continue
        choice = _first(parse_object(data, "text/event-stream").get("choices"))
        delta = choice.get("delta")
        part = delta.get("content") if isinstance(delta, dict) else None
        text += part if isinstance(part, str) else ""
        finish = choice.get("finish_reason") or finish
    if finish is None and not text:
        raise EndpointProblem("the stream holds no answer")
    return {"choices": [{"message": {"content": text}, "finish_reason": finish}]}


def read_reply(value: Mapping[str, Any]) -> Reply:
    """Return what a chat completion says.

    Raises:
        EndpointProblem: it holds no message.
    """
    choice = _first(value.get("choices"))
    message = choice.get("message")
    if not isinstance(message, dict):
        raise EndpointProblem("the answer holds no message under `choices`")
    texts = [_text(message.get(key)) for key in ("reasoning_content", "reasoning", "content")]
    usage = value.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    finish = choice.get("finish_reason")
    return Reply(
        text="\n".join(filter(None, texts))[:MAX_CHARS],
        thinks=bool(texts[0] or texts[1]) and not texts[2],
        finish=finish[:40] if isinstance(finish, str) else "",
        tokens=count if type(count) is int and count >= 0 else None,
        first_logprob=_first_logprob(choice.get("logprobs")),
    )


def _text(value: Any) -> str:
    """Return a text, or those of a list of parts (`{"type": "text", "text": ...}`) as one."""
    parts = value if isinstance(value, list) else [{"text": value}]
    found = (part.get("text") for part in parts if isinstance(part, dict))
    return "".join(text for text in found if isinstance(text, str))


def _first(value: Any) -> Mapping[str, Any]:
    is_list = isinstance(value, list) and value and isinstance(value[0], dict)
    found: Mapping[str, Any] = value[0] if is_list else {}
    return found


def _first_logprob(value: Any) -> float | None:
    """Return the first log-probability from the form of the chat interface, or the older one."""
    if not isinstance(value, dict):
        return None
    listed: Sequence[Any] = value.get("content") or value.get("token_logprobs") or ()
    first = listed[0] if isinstance(listed, list) and listed else None
    found = first.get("logprob") if isinstance(first, dict) else first
    return float(found) if isinstance(found, int | float) and type(found) is not bool else None


def error_text(raw: bytes) -> str:
    """Return what a server says of its error, whatever form it has."""
    with suppress(ValueError, RecursionError):
        value = json.loads(raw)
        error = value.get("error") if isinstance(value, dict) else None
        found = error.get("message") if isinstance(error, dict) else error
        found = found or (value.get("detail") if isinstance(value, dict) else None)
        if found:
            return found if isinstance(found, str) else json.dumps(found)
    return raw[:500].decode("utf-8", "replace")


def seconds_of(text: str) -> float | None:
    """Return the seconds of a Retry-After; dates and nonsense count as none."""
    with suppress(ValueError):
        value = float(text)
        return value if 0 <= value < float("inf") else None
    return None
