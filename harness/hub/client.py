"""Ask the hub for bounded pieces of files, over HTTP alone (standard library).

Small on purpose: the light installation of the doctor has no client of the hub, and no client
reads with a bound. Every answer has a limit of bytes and of time, whatever the server says of it.
"""

from __future__ import annotations

import functools
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any

from harness.hub.names import endpoint, find_token
from mudpuppy.deadline import Overdue, call_within
from mudpuppy.errors import ModelError, MudpuppyError

SOCKET_S = 20.0
"""Seconds without a byte after which a server counts as gone."""
BUDGET_S = 180.0
"""Seconds for everything that is asked of the hub in one visit."""
TRIES = 4
"""How often a server that is busy or failing is asked."""
LONGEST_WAIT_S = 20.0
"""Seconds that a server may ask us to wait."""
CHUNK_BYTES = 1 << 16
MOST_DIGITS = 30
"""Digits of a number in a header that are read: more than any size or time has."""
_BUSY = (429, 500, 502, 503, 504)


class HubError(MudpuppyError):
    """The hub could not be asked, so that nothing is known: exit code 3."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The beginning of a file."""

    raw: bytes
    """Its bytes."""
    size: int | None
    """Bytes of the whole file, where the server says so."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and takes the token along only to the same host."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the next request; the body that came with the redirect is not read."""
        fp.close()
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise HubError(f"{old.netloc} leads to {new.scheme}://{new.netloc}, which is not safe")
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            made.remove_header("Authorization")
        return made


class HubClient:
    """Asks one hub during one visit."""

    def __init__(self, *, budget_s: float = BUDGET_S, socket_s: float = SOCKET_S) -> None:
        """Start the clock of the visit."""
        self.endpoint = endpoint()
        self._token = find_token()
        self._end = time.monotonic() + budget_s
        self._budget_s = budget_s
        self._socket_s = socket_s
        self._opener = urllib.request.build_opener(_Redirects)

    def get_json(self, path: str, limit_bytes: int, what: str) -> Any:
        """Return the JSON behind a path of the hub's API.

        Raises:
            HubError: it cannot be had, is too long, or is no JSON.
            ModelError: the hub says that it does not exist, or refuses it.
        """
        raw = self._ask(f"{self.endpoint}{path}", None, limit_bytes + 1, what).raw
        if len(raw) > limit_bytes:
            raise HubError(
                f"the hub's answer about {what} is longer than {limit_bytes:,} bytes",
                hint="download what is to be examined, and name the folder",
            )
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            shown = raw[:60].decode("utf-8", "replace")
            raise HubError(
                f"{self.endpoint} does not answer as a model hub does: {shown!r}",
                hint="is HF_ENDPOINT the address of a hub?",
            ) from None

    def read(self, path: str, start: int, stop: int, what: str) -> Piece:
        """Return at most the bytes `start:stop` of a file.

        A server that knows no ranges sends the file from its beginning; no more of it is read
        than is needed.

        Raises:
            HubError: it cannot be had.
            ModelError: the hub says that it does not exist, or refuses it.
        """
        return self._ask(f"{self.endpoint}{path}", (start, stop), stop - start, what)

    def _ask(self, url: str, span: tuple[int, int] | None, limit: int, what: str) -> Piece:
        problem = ""
        for attempt in range(TRIES):
            self._require_time(what)
            request = urllib.request.Request(url, headers=self._headers(span))
            try:
                return call_within(
                    self._end - time.monotonic(),
                    functools.partial(self._send, request, span, limit, what),
                )
            except Overdue:
                raise self._overdue(what) from None
            except urllib.error.HTTPError as refusal:
                if refusal.code == 416:  # the range begins behind the end
                    return Piece(raw=b"", size=0)
                if refusal.code not in _BUSY:
                    raise self._explain(refusal, what) from None
                problem = f"it answers {refusal.code} {refusal.reason}"
                self._wait(refusal.headers, attempt, what, problem)
            except (OSError, http.client.HTTPException, ValueError) as failure:
                reason = getattr(failure, "reason", None) or failure
                problem = str(reason) or type(failure).__name__
                self._wait(None, attempt, what, problem)
        raise self._unreachable(what, problem)

    def _send(
        self, request: urllib.request.Request, span: tuple[int, int] | None, limit: int, what: str
    ) -> Piece:
        with self._opener.open(request, timeout=self._patience()) as answer:
            return self._take(answer, span, limit, what)

    def _take(
        self, answer: http.client.HTTPResponse, span: tuple[int, int] | None, limit: int, what: str
    ) -> Piece:
        """Read an answer no further than is needed."""
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise HubError(f"the hub sends {what} compressed, which was not asked for")
        is_part = answer.status == 206
        first = 0
        size = _number(answer.headers.get("Content-Length"))
        if is_part:
            first, size = _content_range(answer.headers)
        skipped = 0 if span is None else span[0] - first
        if skipped < 0 or (is_part and skipped):
            raise HubError(f"the hub sends another part of {what} than the one asked for")
        raw = self._read(answer, skipped + limit, what)
        return Piece(raw=raw[skipped : skipped + limit], size=size)

    def _read(self, answer: http.client.HTTPResponse, limit: int, what: str) -> bytes:
        parts: list[bytes] = []
        while limit > 0:
            self._require_time(what)
            raw = answer.read1(min(limit, CHUNK_BYTES))
            if not raw:
                break
            parts.append(raw)
            limit -= len(raw)
        return b"".join(parts)

    def _headers(self, span: tuple[int, int] | None) -> dict[str, str]:
        headers = {"User-Agent": "mudpuppy-doctor", "Accept-Encoding": "identity"}
        if span is not None:
            headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _patience(self) -> float:
        return max(0.1, min(self._socket_s, self._end - time.monotonic()))

    def _require_time(self, what: str) -> None:
        if time.monotonic() > self._end:
            raise self._overdue(what)

    def _overdue(self, what: str) -> HubError:
        return HubError(
            f"the hub took more than {self._budget_s:g} s; {what} was not read",
            hint="try again, or download the model and examine the folder",
        )

    def _wait(self, headers: Message | None, attempt: int, what: str, problem: str) -> None:
        """Wait before the next try, as long as the server asks for."""
        asked = _number(headers.get("Retry-After")) if headers is not None else None
        pause = float(asked) if asked is not None else 0.5 * 2**attempt
        left = self._end - time.monotonic()
        if attempt + 1 == TRIES or pause > min(LONGEST_WAIT_S, left):
            raise self._unreachable(what, problem)
        time.sleep(pause)

    def _unreachable(self, what: str, problem: str) -> HubError:
        return HubError(
            f"{what} could not be read from {self.endpoint}: {problem}",
            hint="is the network up, and HF_ENDPOINT right? A downloaded folder needs neither",
        )

    def _explain(self, refusal: urllib.error.HTTPError, what: str) -> MudpuppyError:
        code = refusal.headers.get("X-Error-Code", "")
        if refusal.code in (401, 403):
            said = "with the token that is set" if self._token else "without a token"
            return ModelError(
                f"{self.endpoint} refuses {what} {said} ({refusal.code} {code})".rstrip(),
                hint="it may not exist, be private or gated: accept its conditions on its page "
                "and set HF_TOKEN",
            )
        if refusal.code == 404:
            missing = {"RevisionNotFound": "no such revision", "EntryNotFound": "no such file"}
            return ModelError(
                f"{self.endpoint} has no {what} ({missing.get(code, 'not found')})",
                hint="hf://org/name@revision names a branch, a tag or a commit",
            )
        return HubError(f"{what}: {self.endpoint} answers {refusal.code} {refusal.reason}")


def _number(text: str | None) -> int | None:
    digits = (text or "").strip()
    return int(digits[:MOST_DIGITS]) if digits.isdecimal() else None


def _content_range(headers: Mapping[str, str] | Message) -> tuple[int, int | None]:
    """Return where a part begins and the size of the whole; -1 where it is not said."""
    text = str(headers.get("Content-Range") or "")
    span, _, size = text.removeprefix("bytes ").partition("/")
    first = _number(span.partition("-")[0])
    return (-1 if first is None else first), _number(size)
