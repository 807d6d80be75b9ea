"""Talk to an OpenAI-compatible server that may be slow, broken or hostile.

LM Studio, vLLM, Ollama and llama.cpp all answer `GET /v1/models` and `POST /v1/chat/completions`;
they differ in what they refuse. Every body is bounded, every answer has a time limit that a stream
without end cannot outlive, redirects are not followed, and the key is sent nowhere else and never
repeated.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mudpuppy.asking.addresses import KEY_VARIABLE, clean_url, is_local
from mudpuppy.asking.reply import (
    EndpointProblem,
    Reply,
    error_text,
    join_stream,
    parse_object,
    read_reply,
    seconds_of,
)
from mudpuppy.deadline import Overdue, call_within
from mudpuppy.errors import MudpuppyError, UsageError, near_names

if TYPE_CHECKING:
    from mudpuppy.asking.wire import Heard, Wire

REPLY_S = 180.0
"""Time for one answer: a 70B model on a CPU that reads the prompt first."""
GRACE_S = 0.5
"""Time after the end in which the HTTP library may say itself what it waited for."""
TRIES = 3
"""How often a request is sent that the server was too busy for."""
WAIT_S = 0.5
"""Pause before the second try, doubled before each further one."""
MAX_WAIT_S = 5.0
"""Longest pause that a server may ask for with Retry-After."""
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that may be over at the next try."""
REFUSED = (400, 404, 405, 415, 422, 501)
"""Statuses with which servers refuse a field they do not know."""
MAX_MODELS = 1000
OPTIONAL: Mapping[str, Any] = {"logprobs": True, "seed": 0}
"""What is asked for besides, unless somebody wants other fields."""


class EndpointError(MudpuppyError):
    """A server that cannot be asked, so that nothing can be said (exit code 3)."""


@dataclass
class Endpoint:
    """A server and what it has refused so far."""

    url: str
    """Its address up to `/v1`."""
    deadline: float = float("inf")
    """When to stop asking, on the monotonic clock."""
    reply_s: float = REPLY_S
    """Time for one answer."""
    without: dict[str, str] = field(default_factory=dict)
    """Fields that it refused, and what it said."""
    optional: Mapping[str, Any] = field(default_factory=lambda: OPTIONAL)
    """Fields that some servers refuse; they are asked without."""
    flags: tuple[str, str] = ("--endpoint", "--endpoint-model")
    """How a person names address and model, for messages."""

    def __post_init__(self) -> None:
        self.url = clean_url(self.url, self.flags[0])
        self._key = os.environ.get(KEY_VARIABLE, "")
        self._opened: Wire | None = None

    def choose_model(self, wanted: str | None) -> str:
        """Return the name of the model to ask: the one wanted, or the only one there is.

        Raises:
            UsageError: the server has several, or not the one that is wanted.
            EndpointError: it cannot be reached, or lists no model.
        """
        try:
            names = self._list_models()
        except EndpointProblem as problem:
            if wanted and not isinstance(problem.__cause__, ConnectionError):
                return wanted  # a server without a list of models may still answer
            raise EndpointError(
                f"{self.url}/models: {problem}",
                hint="is the server running? the address ends in /v1, such as "
                "http://127.0.0.1:1234/v1",
            ) from problem
        if wanted:
            if names and wanted not in names and f"{wanted}:latest" not in names:
                shown = ", ".join(one[:80] for one in names[:5])
                raise UsageError(
                    f"the server has no model '{wanted[:80]}'{near_names(wanted, names)}",
                    hint=f"it lists {shown}",
                )
            return wanted
        speaking = [name for name in names if "embed" not in name.lower()]
        if len(speaking) != 1:
            shown = ", ".join(one[:80] for one in speaking[:5]) or "none"
            raise UsageError(
                f"the server lists {len(speaking)} models that could be asked: {shown}",
                hint=f"name one with {self.flags[1]} NAME",
            )
        return speaking[0]

    def _list_models(self) -> list[str]:
        value = self._request(self._wire().list_models)
        listed = value.get("data")
        if not isinstance(listed, list):
            raise EndpointProblem("the answer holds no list of models under `data`")
        names = [one.get("id") for one in listed[:MAX_MODELS] if isinstance(one, dict)]
        return [name for name in names if isinstance(name, str) and name]

    def chat(self, model: str, prompt: str, max_tokens: int, *, system: str | None = None) -> Reply:
        """Ask one question, greedily; a server's refusal of an optional field is remembered.

        Args:
            model: the model, as the server calls it.
            prompt: what the user says.
            max_tokens: most new tokens.
            system: what the system says before; nothing by default.
        """
        lead = [] if system is None else [{"role": "system", "content": system}]
        limit = "max_completion_tokens" if "max_tokens" in self.without else "max_tokens"
        body: dict[str, Any] = {
            "model": model,
            "messages": [*lead, {"role": "user", "content": prompt}],
            "temperature": 0,
            "stream": False,
            limit: max_tokens,
            **{key: value for key, value in self.optional.items() if key not in self.without},
        }
        try:
            return read_reply(self._request(partial(self._wire().chat, body)))
        except _Refused as refusal:
            yielding = (*self.optional, "max_tokens")
            # The field that is named, or all optional ones: many servers do not say which.
            named = [key for key in body if key in refusal.said and key in yielding]
            fields = named or [key for key in self.optional if key in body]
            if not fields or ("max_tokens" in self.without and "max_tokens" in fields):
                return Reply(problem=str(refusal))
            self.without |= dict.fromkeys(fields, refusal.said[:200])
            return self.chat(model, prompt, max_tokens, system=system)
        except EndpointProblem as problem:
            return Reply(problem=str(problem))

    def _wire(self) -> Wire:
        """Return the connection, opened when it is first needed.

        Raises:
            UsageError: the client is not installed, which the doctor's light install lacks.
        """
        if self._opened is None:
            try:
                from mudpuppy.asking.wire import Wire
            except ImportError as problem:
                raise UsageError(
                    f"{self.flags[0]} needs the package openai, which is not installed",
                    hint="pip install 'mudpuppy[endpoint]'",
                ) from problem
            # a proxy cannot reach this machine
            self._opened = Wire(self.url, self._key, self.reply_s, use_proxy=not is_local(self.url))
        return self._opened

    def _request(self, ask: _Ask) -> dict[str, Any]:
        """Send a request, again when the server is busy, and return the JSON object it answers.

        Raises:
            EndpointProblem: there is no such answer, and why.
        """
        for number in range(TRIES):
            try:
                return self._send(ask)
            except _Busy as busy:
                wait = min(MAX_WAIT_S, busy.wait_s or WAIT_S * 2**number)
                if number + 1 == TRIES or time.monotonic() + wait > self.deadline:
                    raise EndpointProblem(f"{busy} after {number + 1} tries") from busy
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _send(self, ask: _Ask) -> dict[str, Any]:
        """Send a request; a server that trickles even its head is given up in time."""
        ends = min(time.monotonic() + self.reply_s, self.deadline)
        left = max(0.1, ends - time.monotonic())
        try:
            heard = call_within(left + GRACE_S, partial(ask, left))
        except Overdue:
            raise EndpointProblem("the answer did not end in time") from None
        except OSError as problem:
            raise EndpointProblem(self._clean(str(problem))) from problem
        return self._judge(heard)

    def _judge(self, heard: Heard) -> dict[str, Any]:
        """Return the JSON object of an answer.

        Raises:
            EndpointProblem: the status or the body is not what was asked for.
        """
        status, raw = heard.status, heard.raw
        said = self._clean(error_text(raw))
        if status in BUSY:
            wait_s = seconds_of(heard.headers.get("retry-after", ""))
            raise _Busy(f"status {status}: {said}", wait_s)
        if status in (401, 403):
            raise EndpointProblem(f"status {status}; set {KEY_VARIABLE} to the server's key")
        if status in REFUSED:
            raise _Refused(f"status {status}: {said}", said)
        if status != 200:
            raise EndpointProblem(f"status {status}: {said}")
        kind = heard.headers.get("content-type", "")
        if "event-stream" in kind or raw.startswith(b"data:"):
            return join_stream(raw)
        value = parse_object(raw, kind)
        if value.get("error"):
            raise EndpointProblem(f"the server says: {said}")
        return value

    def _clean(self, text: str) -> str:
        """Return a server's words on one short line, and never with the key."""
        hidden = text.replace(self._key, "***") if self._key else text
        return " ".join(hidden.split())[:200]


_Ask = Callable[[float], "Heard"]
"""A request that waits no longer than some seconds."""


class _Busy(EndpointProblem):
    """The server may answer later."""

    def __init__(self, text: str, wait_s: float | None) -> None:
        super().__init__(text)
        self.wait_s = wait_s


class _Refused(EndpointProblem):
    """The server does not take the request as it is."""

    def __init__(self, text: str, said: str) -> None:
        super().__init__(text)
        self.said = said
