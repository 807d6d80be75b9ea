"""Ask a model that an OpenAI-compatible server serves: llama.cpp, LM Studio, vLLM, Ollama."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from mudpuppy.asking.addresses import KEY_VARIABLE, is_near
from mudpuppy.asking.answers import Answer, OnAnswer
from mudpuppy.asking.endpoint import Endpoint, EndpointError
from mudpuppy.asking.reply import Reply

OPTIONAL = {"seed": 0}
"""Fields that are left out where a server refuses them."""


class ServedAnswerer:
    """A served model; `connect` makes one.

    Args:
        endpoint: the server.
        model: the model, as the server calls it.
        system: what the system says before every prompt.
        identity: what tells this model from others; without one the server's address stands for it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        *,
        system: str | None = None,
        identity: str | None = None,
    ) -> None:
        self.name = model
        self._endpoint, self._system = endpoint, system
        self.is_recognised = identity is not None
        self.identity: Mapping[str, str] = {
            "served": identity or endpoint.url,
            "model": model,
            "system": system or "",
        }

    def answer(
        self, prompts: Sequence[str], *, max_tokens: int, on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        """Ask one prompt after the other.

        Raises:
            EndpointError: a prompt has no answer, after several tries where the server was busy.
        """
        answers = []
        for number, prompt in enumerate(prompts):
            started = time.monotonic()
            reply = self._endpoint.chat(self.name, prompt, max_tokens, system=self._system)
            if reply.problem:
                raise self._explain(reply, number, len(prompts))
            answer = Answer(
                text=reply.text.strip(),
                ended=reply.ended,
                tokens=reply.tokens,
                seconds=time.monotonic() - started,
            )
            answers.append(answer)
            if on_answer is not None:
                on_answer(number, answer)
        return answers

    def _explain(self, reply: Reply, number: int, total: int) -> EndpointError:
        where = f"{self._endpoint.url}: {self.name[:80]} gave no answer"
        return EndpointError(
            f"{where} to question {number + 1} of {total}: {reply.problem}",
            hint=_advise(reply.problem, self._endpoint),
        )


def _advise(problem: str, endpoint: Endpoint) -> str:
    """Return what to do about a problem."""
    if KEY_VARIABLE in problem:
        return f"export {KEY_VARIABLE}=... and type the command again"
    if "timed out" in problem or "in time" in problem:
        return f"an answer may take {endpoint.reply_s:g} s; is the server busy with others?"
    if "status 429" in problem or "status 5" in problem:
        return "wait until the server is less busy, or has loaded its model"
    if "no JSON" in problem or "status 404" in problem:
        return f"is {endpoint.url} the address of an OpenAI-compatible server? it ends in /v1"
    return "see in the server's own log what happened to it"


def connect(
    url: str,
    *,
    model: str | None,
    system: str | None,
    identity: str | None,
    reply_s: float,
    flags: tuple[str, str],
    say: Callable[[str], None],
) -> ServedAnswerer:
    """Return the served model, which is there; arguments and errors are those of `open_served`."""
    endpoint = Endpoint(url, reply_s=reply_s, optional=OPTIONAL, flags=flags)
    if not is_near(endpoint.url):
        say(_name_stranger(endpoint.url))
    return ServedAnswerer(endpoint, endpoint.choose_model(model), system=system, identity=identity)


def _name_stranger(url: str) -> str:
    parts = urlsplit(url)
    said = f"every question goes to {parts.hostname}, which is not on a private network"
    if parts.scheme == "http":
        with_key = ", and the key with them" if os.environ.get(KEY_VARIABLE) else ""
        said += f"; over http anybody on the way reads them{with_key}"
    return said
