"""Talk to an OpenAI-compatible server that may be slow, broken or hostile.

LM Studio, vLLM, Ollama and llama.cpp all answer `GET /v1/models` and `POST /v1/chat/completions`;
they differ in what they refuse. Every body is bounded, every answer has a time limit that a stream
without end cannot outlive, redirects are not followed, and the key is sent nowhere else and never
repeated.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from harness.deadline import Overdue, call_within
from harness.facts.served import Reply
from mudpuppy.errors import MudpuppyError, UsageError, near_names

KEY_VARIABLE = "MUDPUPPY_ENDPOINT_KEY"
"""Environment variable with the API key. Not OPENAI_API_KEY: that is not every server's to see."""
MAX_BYTES = 4_000_000
"""Longest body that is read."""
MAX_CHARS = 100_000
"""Longest answer that is kept."""
REPLY_S = 180.0
"""Time for one answer: a 70B model on a CPU that reads the prompt first."""
CONNECT_S = 10.0
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
"""Fields that some servers refuse; they are asked without."""


class EndpointError(MudpuppyError):
    """A server that cannot be asked, so that nothing can be said (exit code 3)."""


class EndpointProblem(Exception):
    """Why a request has no usable answer, in one line."""


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

    def __post_init__(self) -> None:
        self.url = clean_url(self.url)
        self._key = os.environ.get(KEY_VARIABLE, "")

    def choose_model(self, wanted: str | None) -> str:
        """Return the name of the model to ask: the one wanted, or the only one there is.

        Raises:
            UsageError: the server has several, or not the one that is wanted.
            EndpointError: it cannot be reached, or lists no model.
        """
        try:
            names = self._list_models()
        except EndpointProblem as problem:
            if wanted and not isinstance(problem.__cause__, OSError):
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
                hint="name one with --endpoint-model NAME",
            )
        return speaking[0]

    def _list_models(self) -> list[str]:
        value = self._request("GET", "/models", None)
        listed = value.get("data")
        if not isinstance(listed, list):
            raise EndpointProblem("the answer holds no list of models under `data`")
        names = [one.get("id") for one in listed[:MAX_MODELS] if isinstance(one, dict)]
        return [name for name in names if isinstance(name, str) and name]

    def chat(self, model: str, prompt: str, max_tokens: int) -> Reply:
        """Ask one question, greedily; a server's refusal of an optional field is remembered."""
        limit = "max_completion_tokens" if "max_tokens" in self.without else "max_tokens"
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "stream": False,
            limit: max_tokens,
            **{key: value for key, value in OPTIONAL.items() if key not in self.without},
        }
        try:
            return _read_reply(self._request("POST", "/chat/completions", body))
        except _Refused as refusal:
            # The field that is named, or all optional ones: many servers do not say which.
            named = [key for key in body if f"{key}" in refusal.said and key in _YIELDING]
            fields = named or [key for key in OPTIONAL if key in body]
            if not fields or ("max_tokens" in self.without and "max_tokens" in fields):
                return Reply(problem=str(refusal))
            self.without |= dict.fromkeys(fields, refusal.said[:200])
            return self.chat(model, prompt, max_tokens)
        except EndpointProblem as problem:
            return Reply(problem=str(problem))

    def _request(self, method: str, path: str, body: Any) -> dict[str, Any]:
        """Send a request, again when the server is busy, and return the JSON object it answers.

        Raises:
            EndpointProblem: there is no such answer, and why.
        """
        for number in range(TRIES):
            try:
                return self._send(method, path, body)
            except _Busy as busy:
                wait = min(MAX_WAIT_S, busy.wait_s or WAIT_S * 2**number)
                if number + 1 == TRIES or time.monotonic() + wait > self.deadline:
                    raise EndpointProblem(f"{busy} after {number + 1} tries") from busy
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _send(self, method: str, path: str, body: Any) -> dict[str, Any]:
        """Send a request; a server that trickles even its head is given up in time."""
        ends = min(time.monotonic() + self.reply_s, self.deadline)
        left = max(0.1, ends - time.monotonic())
        work = partial(self._exchange, method, path, body, left, ends)
        try:
            return call_within(left + GRACE_S, work)
        except Overdue:
            raise EndpointProblem("the answer did not end in time") from None

    def _exchange(
        self, method: str, path: str, body: Any, left: float, ends: float
    ) -> dict[str, Any]:
        httpx2 = _import_client()
        # Nothing packed: a small body could become a large one.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            with (
                httpx2.Client(
                    timeout=httpx2.Timeout(left, connect=min(CONNECT_S, left)),
                    follow_redirects=False,
                    trust_env=not is_local(self.url),  # a proxy cannot reach this machine
                ) as client,
                client.stream(method, self.url + path, json=body, headers=headers) as answer,
            ):
                raw = self._read(answer, ends)
                kind = answer.headers.get("content-type", "")
                return self._judge(answer.status_code, kind, raw, answer.headers)
        except httpx2.HTTPError as problem:
            said = self._clean(str(problem) or type(problem).__name__)
            raise EndpointProblem(said) from (
                OSError(said) if isinstance(problem, httpx2.ConnectError) else problem
            )
        except httpx2.InvalidURL as problem:
            raise EndpointProblem(f"not an address: {problem}") from problem

    def _read(self, answer: Any, ends: float) -> bytes:
        """Return the body, which has an end."""
        raw = bytearray()
        for part in answer.iter_raw():
            raw += part
            if len(raw) > MAX_BYTES:
                raise EndpointProblem(f"the answer is longer than {MAX_BYTES:,} bytes")
            if time.monotonic() > ends:
                raise EndpointProblem("the answer did not end in time")
            if raw[-40:].rstrip().endswith(b"data: [DONE]"):
                break
        return bytes(raw)

    def _judge(
        self, status: int, kind: str, raw: bytes, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        """Return the JSON object of an answer.

        Raises:
            EndpointProblem: the status or the body is not what was asked for.
        """
        said = self._clean(_error_text(raw))
        if status in BUSY:
            raise _Busy(f"status {status}: {said}", _seconds(headers.get("retry-after", "")))
        if status in (401, 403):
            raise EndpointProblem(f"status {status}; set {KEY_VARIABLE} to the server's key")
        if status in REFUSED:
            raise _Refused(f"status {status}: {said}", said)
        if status != 200:
            raise EndpointProblem(f"status {status}: {said}")
        if "event-stream" in kind or raw.startswith(b"data:"):
            return _join_stream(raw)
        value = _parse(raw, kind)
        if value.get("error"):
            raise EndpointProblem(f"the server says: {said}")
        return value

    def _clean(self, text: str) -> str:
        """Return a server's words on one short line, and never with the key."""
        hidden = text.replace(self._key, "***") if self._key else text
        return " ".join(hidden.split())[:200]


_YIELDING = (*OPTIONAL, "max_tokens")


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


def _import_client() -> Any:
    """Return the HTTP library, which the doctor's light install lacks.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import httpx2
    except ImportError as problem:
        raise UsageError(
            "--endpoint needs httpx2, which is not installed",
            hint="pip install 'mudpuppy[endpoint]'",
        ) from problem
    return httpx2


def clean_url(url: str) -> str:
    """Return the address of a server up to `/v1`.

    Raises:
        UsageError: it is no http address, or holds a password.
    """
    hint = "give it like http://127.0.0.1:1234/v1"
    try:
        parts = urlsplit(url.strip())
        has_host, _ = bool(parts.hostname), parts.port
    except ValueError as problem:
        raise UsageError(f"--endpoint is not an address: {problem}", hint=hint) from None
    if parts.scheme not in ("http", "https") or not has_host:
        raise UsageError(f"--endpoint {url[:200]!r} is not an http address", hint=hint)
    if parts.username or parts.password:
        hint = f"put the key into the variable {KEY_VARIABLE}"
        raise UsageError("--endpoint holds a password, which would be printed", hint=hint)
    if parts.query or parts.fragment:
        raise UsageError("--endpoint holds more than an address and a path", hint=hint)
    path = parts.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/models")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def is_local(url: str) -> bool:
    """Whether an address is on this machine."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _parse(raw: bytes, kind: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as problem:
        shown = kind.partition(";")[0][:60] or "of no type"
        raise EndpointProblem(f"the answer is {shown} and no JSON: {problem}"[:200]) from None
    if not isinstance(value, dict):
        raise EndpointProblem("the answer is no JSON object")
    return value


def _join_stream(raw: bytes) -> dict[str, Any]:
    """Return an answer that was streamed though none was asked for, as one object."""
    text, finish = "", None
    for line in raw.split(b"\n"):
        data = line.strip().removeprefix(b"data:").strip()
        if not line.strip().startswith(b"data:") or data == b"[DONE]":
            continue
        choice = _first(_parse(data, "text/event-stream").get("choices"))
        delta = choice.get("delta")
        part = delta.get("content") if isinstance(delta, dict) else None
        text += part if isinstance(part, str) else ""
        finish = choice.get("finish_reason") or finish
    if finish is None and not text:
        raise EndpointProblem("the stream holds no answer")
    return {"choices": [{"message": {"content": text}, "finish_reason": finish}]}


def _read_reply(value: Mapping[str, Any]) -> Reply:
    choice = _first(value.get("choices"))
    message = choice.get("message")
    if not isinstance(message, dict):
        raise EndpointProblem("the answer holds no message under `choices`")
    texts = [message.get(key) for key in ("reasoning_content", "reasoning", "content")]
    usage = value.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    finish = choice.get("finish_reason")
    return Reply(
        text="\n".join(text for text in texts if isinstance(text, str) and text)[:MAX_CHARS],
        thinks=bool(texts[0] or texts[1]) and not texts[2],
        finish=finish[:40] if isinstance(finish, str) else "",
        tokens=count if type(count) is int and count >= 0 else None,
        first_logprob=_first_logprob(choice.get("logprobs")),
    )


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


def _error_text(raw: bytes) -> str:
    """Return what a server says of its error, whatever form it has."""
    with suppress(ValueError, RecursionError):
        value = json.loads(raw)
        error = value.get("error") if isinstance(value, dict) else None
        found = error.get("message") if isinstance(error, dict) else error
        found = found or (value.get("detail") if isinstance(value, dict) else None)
        if found:
            return found if isinstance(found, str) else json.dumps(found)
    return raw[:500].decode("utf-8", "replace")


def _seconds(text: str) -> float | None:
    """Return the seconds of a Retry-After; dates and nonsense count as none."""
    with suppress(ValueError):
        value = float(text)
        return value if 0 <= value < float("inf") else None
    return None
