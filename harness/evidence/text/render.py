"""Render the chat templates of strangers: in a child process with limits on time, memory and text.

A template is a program. jinja's sandbox keeps it from Python's objects, and nothing keeps it from
counting to 10**12; so a child renders, which is ended after a while, may not start processes or
write files, and whose answer is read up to a limit.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

from harness.evidence.text.template import make_world
from harness.registry import Missing

SECONDS = 0.6
"""Processor time of a child; the longest public template needs some 0.05 s."""
BUDGET_S = 1.2
"""Processor time of all children of a folder after which no further template is rendered."""
PATIENCE_S = 10.0
"""Time by the clock for all templates of a folder; only a busy machine takes so long."""
MEMORY_BYTES = 300_000_000
"""Memory that a child may take beyond what it began with."""
TEXT_LIMIT = 100_000
"""Characters of one rendered conversation; the conversations themselves have some hundred."""
ANSWER_LIMIT = 4_000_000
"""Bytes that are read from a child."""

Outcome = tuple[str, str]
"""What became of one conversation: `text`, `refused` or `raised`, and the text or the reason."""


class _Refusal(TemplateError):
    """The template called `raise_exception`."""


class _TooLong(Exception):
    """The template writes more than can be meant."""


class _Names(Namespace):
    """A namespace without names that begin with an underscore, as transformers has it."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"{name!r} cannot be set")
        super().__setitem__(name, value)


@lru_cache(maxsize=64)
def render(texts: tuple[str, ...], asked: str) -> tuple[Mapping[str, Outcome] | str, ...]:
    """Return, by template, what became of every conversation; a reason where nothing could be.

    Args:
        texts: the templates.
        asked: conversations by name as JSON, each the variables that the template sees.

    Raises:
        Missing: the system cannot start a process by forking, or is too busy, or the templates take
            too long together.
    """
    if not hasattr(os, "fork"):
        raise Missing("chat templates are rendered in a forked process, which this system lacks")
    conversations: dict[str, Any] = json.loads(asked)
    until, spent = time.monotonic() + PATIENCE_S, 0.0
    found = []
    for text in texts:
        if spent > BUDGET_S:
            raise Missing(f"the templates of the folder take longer than {BUDGET_S} s to render")
        outcomes, seconds = _render_one(text, conversations, until)
        found.append(outcomes)
        spent += seconds
    return tuple(found)


def _render_one(
    text: str, conversations: Mapping[str, Any], until: float
) -> tuple[Mapping[str, Outcome] | str, float]:
    """Return what became of the conversations, and the processor time that it took."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _work(text, conversations, writer)
    os.close(writer)
    try:
        raw = _read(reader, until)
    finally:
        os.close(reader)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status, used = os.wait4(child, 0)
    seconds = used.ru_utime + used.ru_stime
    try:
        found = json.loads(raw)
    except ValueError:
        return _why_silent(os.WTERMSIG(status), time.monotonic() > until), seconds
    return {name: (str(kind), str(said)) for name, (kind, said) in found.items()}, seconds


def _why_silent(ended_by: int, is_late: bool) -> str:
    """Return why a child gave no answer; raises Missing where the template cannot be blamed."""
    if ended_by == signal.SIGKILL and is_late:
        raise Missing(f"this machine was too busy to render chat templates within {PATIENCE_S} s")
    if ended_by in (signal.SIGPROF, signal.SIGXCPU):
        return f"it does not end within {SECONDS} s"
    return "it takes too much memory, or writes more than can be meant"


def _read(reader: int, until: float) -> bytes:
    raw = bytearray()
    while (left := until - time.monotonic()) > 0 and len(raw) < ANSWER_LIMIT:
        if not select.select([reader], [], [], left)[0]:
            break
        piece = os.read(reader, 65536)
        if not piece:
            break
        raw += piece
    return bytes(raw)


def _work(text: str, conversations: Mapping[str, Any], writer: int) -> NoReturn:
    """Do the child's part; leaves without running anything that the parent has registered."""
    try:
        gc.disable()  # it would go through all that the parent holds, on the template's time
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU, signal.SIGPROF):
            signal.signal(number, signal.SIG_DFL)
        _limit()
        answer = json.dumps(_render_all(text, conversations)).encode()
        while answer:
            answer = answer[os.write(writer, answer) :]
    finally:
        os._exit(0)


def _limit() -> None:
    """Bound what this process may take."""
    import resource

    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))  # should the timer be set aside
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with suppress(OSError, ValueError):
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = taken + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _render_all(text: str, conversations: Mapping[str, Any]) -> dict[str, Outcome]:
    world = make_world()
    world.filters["tojson"] = _to_json
    world.globals |= {"raise_exception": _refuse, "strftime_now": _now, "namespace": _Names}
    try:
        template = world.from_string(text)
    except Exception as problem:  # noqa: BLE001 - whatever compiling it raises is the answer
        return dict.fromkeys(conversations, ("raised", _describe(problem)))
    found = {}
    for name, variables in conversations.items():
        try:
            found[name] = ("text", _join(template.generate(**variables)))
        except _Refusal as refusal:
            found[name] = ("refused", str(refusal)[:200])
        except Exception as problem:  # noqa: BLE001 - a template may raise anything
            found[name] = ("raised", _describe(problem))
    return found


def _join(pieces: Any) -> str:
    whole: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > TEXT_LIMIT:
            raise _TooLong(f"it writes more than {TEXT_LIMIT:,} characters for a few words")
        whole.append(piece)
    return "".join(whole)


def _describe(problem: Exception) -> str:
    said = str(problem)[:200]
    return said if isinstance(problem, _TooLong) else f"{type(problem).__name__}: {said}"


def _refuse(message: str) -> NoReturn:
    raise _Refusal(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    parts = None if separators is None else (separators[0], separators[1])
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=parts, sort_keys=sort_keys
    )
