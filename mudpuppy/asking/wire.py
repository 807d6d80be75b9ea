"""The `openai` client on a wire that bounds what comes back: its size, its time, no redirects.

Imported only when a server is asked: the light installation has no client. What a server sends is
counted while it arrives, before the client keeps it; it is never unpacked, since a small body could
become a large one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import httpx2
import openai

MAX_BYTES = 4_000_000
"""Longest body that is read."""
CONNECT_S = 10.0
"""Time to connect."""
LAST = b"data: [DONE]"
"""What ends a stream, whatever a server sends afterwards."""


class TooMuch(OSError):
    """A body that is too long, or does not end."""


class Heard(NamedTuple):
    """An answer as it came."""

    status: int
    """HTTP status."""
    headers: Mapping[str, str]
    """Its head; names are found in any case."""
    raw: bytes
    """Its body."""


class _Bounded(httpx2.SyncByteStream):  # type: ignore[misc]  # httpx2 is not typed for us
    """A body that ends: after `MAX_BYTES`, at a time, or with the last event of a stream."""

    def __init__(self, inner: Any, ends: float) -> None:
        self._inner, self._ends = inner, ends

    def __iter__(self) -> Iterator[bytes]:
        size, tail = 0, b""
        for part in self._inner:
            size += len(part)
            if size > MAX_BYTES:
                raise TooMuch(f"the answer is longer than {MAX_BYTES:,} bytes")
            if time.monotonic() > self._ends:
                raise TooMuch("the answer did not end in time")
            yield part
            tail = (tail + part)[-40:]
            if tail.rstrip().endswith(LAST):
                return

    def close(self) -> None:
        self._inner.close()


class Wire:
    """A connection to one server.

    Args:
        url: its address up to `/v1`.
        key: the API key; empty for none.
        read_s: time for one answer.
        use_proxy: whether the environment's proxies count.
    """

    def __init__(self, url: str, key: str, read_s: float, *, use_proxy: bool) -> None:
        self._read_s = read_s
        http = httpx2.Client(
            follow_redirects=False,
            trust_env=use_proxy,
            event_hooks={"response": [self._bound]},
        )
        # The client would also send what the environment says of an account elsewhere.
        nothing = openai.Omit()
        headers: dict[str, Any] = {
            "Accept-Encoding": "identity",
            "OpenAI-Organization": nothing,
            "OpenAI-Project": nothing,
        }
        # Without a key the client wants to hear with every request that none is meant.
        self._unsigned: dict[str, Any] = {} if key else {"Authorization": nothing}
        self._client = openai.OpenAI(
            api_key=key or "none",
            base_url=url,
            max_retries=0,
            default_headers=headers,
            http_client=http,
        )

    def _bound(self, answer: Any) -> None:
        answer.headers.pop("content-encoding", None)
        answer.stream = _Bounded(answer.stream, time.monotonic() + self._read_s)

    def list_models(self, seconds: float) -> Heard:
        """Ask for the list of models; errors as for `chat`."""
        ask = self._within(seconds).models.with_raw_response.list
        return _hear(lambda: ask(extra_headers=self._unsigned))

    def chat(self, body: Mapping[str, Any], seconds: float) -> Heard:
        """Ask for an answer.

        Args:
            body: the fields of the request.
            seconds: longest silence of the server.

        Returns:
            What came, whatever its status.

        Raises:
            ConnectionError: there is nobody.
            TimeoutError: nobody said anything in time.
            OSError: the connection broke, or the body has no end (`TooMuch`).
        """
        create = self._within(seconds).chat.completions.with_raw_response.create
        return _hear(lambda: create(**body, extra_headers=self._unsigned))

    def _within(self, seconds: float) -> Any:
        timeout = httpx2.Timeout(seconds, connect=min(CONNECT_S, seconds))
        return self._client.with_options(timeout=timeout)


def _hear(ask: Callable[[], Any]) -> Heard:
    try:
        answer = ask().http_response
    except openai.APIStatusError as problem:
        answer = problem.response
    except openai.APIConnectionError as problem:
        raise _translate(problem) from problem
    except httpx2.InvalidURL as problem:
        raise OSError(f"not an address: {problem}") from problem
    return Heard(answer.status_code, answer.headers, answer.content)


def _translate(problem: Any) -> Exception:
    """Return what lies below the client's word for everything, `Connection error`."""
    below = problem.__cause__
    said = str(below or "") or type(below or problem).__name__
    if isinstance(below, TooMuch):
        return TooMuch(said)
    if isinstance(below, httpx2.ConnectError | httpx2.ConnectTimeout):
        return ConnectionError(said)
    if isinstance(problem, openai.APITimeoutError):
        return TimeoutError(said if "timed out" in said else "it timed out")
    return OSError(said)
