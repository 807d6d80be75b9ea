"""Work in forked children: each begins as clean as its parent, and none outlives it.

A parent that has imported the libraries and computed nothing starts a stage in milliseconds, gets
all memory back when it ends, and learns how it ended, whatever that was. The parent must not
compute: a fork of a process that has used OpenMP may hang. Standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mudpuppy.errors import EngineError, MudpuppyError, UsageError

THREADS_VARIABLE = "OMP_NUM_THREADS"
"""Environment variable with the number of threads that a child may use."""
LAST_LINES = 3
"""Lines of a child's output that tell how it died."""

_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class ChildDied(EngineError):
    """A child ended without a word: by a signal, or by an error that is nobody's intention."""


def die_with(parent: int) -> Callable[[], None] | None:
    """Return what a child does first: ask the kernel to kill it when its parent dies (Linux)."""
    libc = _LIBC
    if libc is None:
        return None

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it could be asked
            os._exit(1)

    return ask


def run_child(name: str, work: Callable[[], Any], log: Path) -> Any:
    """Run `work` in a forked child and return what it returned, in JSON types.

    Args:
        name: how messages call it.
        work: must return what JSON can say.
        log: file that what it prints is added to.

    Raises:
        UsageError: it raised one; nothing of a person's mistake is lost on the way.
        EngineError: it raised one.
        ChildDied: it ended otherwise; the message has the last lines that it printed.
        KeyboardInterrupt: this process was interrupted; the child is ended first.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    ask = die_with(os.getpid())
    with tempfile.TemporaryFile("w+", encoding="utf-8") as answer:
        pid = os.fork()
        if pid == 0:
            _be_child(work, ask, log, answer)
        try:
            _, status = os.waitpid(pid, 0)
        except BaseException:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        answer.seek(0)
        text = answer.read()
    code = os.waitstatus_to_exitcode(status)
    if code or not text:
        raise ChildDied(f"{name} {_tell(code)}{_last_words(log)}", hint=f"its output is in {log}")
    said = json.loads(text)
    if "error" in said:
        raise _thaw(said["error"])
    return said["value"]


def _be_child(work: Callable[[], Any], ask: Callable[[], None] | None, log: Path, to: Any) -> None:
    """Do the work and leave without what the parent has registered for its own exit."""
    code = 1
    try:
        if ask is not None:
            ask()
        _speak_into(log)
        _use_threads()
        try:
            said = {"value": work()}
        except MudpuppyError as error:
            traceback.print_exc()
            said = {"error": _freeze(error)}
        json.dump(said, to, allow_nan=False)
        to.flush()
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the parent must not go on in here
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _speak_into(log: Path) -> None:
    """Send everything that is printed, by libraries in C too, to the end of a file."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for number in (1, 2):
        os.dup2(handle, number)
    os.close(handle)
    # whoever captures the output of the parent does not capture the child's
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def _use_threads() -> None:
    """Give torch the share of the cores that the environment names."""
    torch: Any = sys.modules.get("torch")
    threads = os.environ.get(THREADS_VARIABLE, "")
    if torch is not None and threads.isdecimal() and int(threads):
        torch.set_num_threads(int(threads))


def _freeze(error: MudpuppyError) -> dict[str, str]:
    kind = "usage" if isinstance(error, UsageError) else "engine"
    code = getattr(error, "code", "")
    return {"kind": kind, "message": error.message, "hint": error.hint, "code": code}


def _thaw(said: dict[str, str]) -> MudpuppyError:
    """Return the error that a child raised; its message holds its code already."""
    if said["kind"] == "usage":
        return UsageError(said["message"], hint=said["hint"])
    error = EngineError(said["message"], hint=said["hint"])
    error.code = said["code"]
    return error


def _tell(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was ended by SIGKILL, as the kernel does when memory runs out"
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _last_words(log: Path) -> str:
    """Return the last lines of a child's output, behind a colon."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {' | '.join(lines[-LAST_LINES:])[:500]}" if lines else ""
