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
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from mudpuppy.errors import EngineError, MudpuppyError, UsageError

THREADS_VARIABLE = "OMP_NUM_THREADS"
"""Environment variable with the number of threads that a child may use."""
LAST_LINES = 3
"""Lines of a child's output that tell how it died."""
LOOK_S = 0.01
"""Seconds between two looks at a child that has a time limit."""

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


def run_child(
    name: str, work: Callable[[], Any], log: Path, *, timeout_s: float | None = None
) -> Any:
    """Run `work` in a forked child and return what it returned, in JSON types.

    The child leads a session of its own: whatever it has started is ended with it, however it ends.

    Args:
        name: how messages call it.
        work: must return what JSON can say.
        log: file that what it prints is added to.
        timeout_s: longest time; None for any.

    Raises:
        UsageError: it raised one; nothing of a person's mistake is lost on the way.
        EngineError: it raised one.
        ChildDied: it ended otherwise, or not in time; the message has the last lines that it
            printed.
        KeyboardInterrupt: this process was interrupted; the child is ended first.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    ask = die_with(os.getpid())
    with tempfile.TemporaryFile("w+", encoding="utf-8") as answer:
        pid = os.fork()
        if pid == 0:
            be_child(lambda: _answer(work, log, answer), ask)
        try:
            is_late = not _wait(pid, timeout_s)
        finally:
            status = _end(pid)
        answer.seek(0)
        text = answer.read()
    if is_late:
        raise ChildDied(
            f"{name} was ended after {timeout_s:g} s{_last_words(log)}",
            hint=f"its output is in {log}; give it more time if it only was slow",
        )
    code = os.waitstatus_to_exitcode(status)
    if code or not text:
        raise ChildDied(f"{name} {_tell(code)}{_last_words(log)}", hint=f"its output is in {log}")
    said = json.loads(text)
    if "error" in said:
        raise _thaw(said["error"])
    return said["value"]


def _wait(pid: int, timeout_s: float | None) -> bool:
    """Wait until a child has ended, and return whether it did in time. It is not reaped."""
    how = os.WEXITED | os.WNOWAIT
    if timeout_s is None:
        os.waitid(os.P_PID, pid, how)
        return True
    ends = time.monotonic() + timeout_s
    while os.waitid(os.P_PID, pid, how | os.WNOHANG) is None:
        if time.monotonic() > ends:
            return False
        time.sleep(LOOK_S)
    return True


def _end(pid: int) -> int:
    """End a child that was not reaped and all that it has started; return its wait status."""
    try:
        with suppress(PermissionError):  # macOS: the group is its zombie alone
            os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it leads no group yet
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def be_child(work: Callable[[], Any], ask: Callable[[], None] | None) -> NoReturn:
    """Do the work of a fork and leave without what the parent has registered for its own exit.

    Args:
        work: what is done; the exit code is 1 where it raises, and the traceback is printed.
        ask: what `die_with` returned in the parent.
    """
    code = 1
    try:
        if ask is not None:
            ask()
        use_threads()
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the parent must not go on in here
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _answer(work: Callable[[], Any], log: Path, to: Any) -> None:
    """Do the work, and write what it returned or raised where the parent reads it."""
    os.setsid()
    _speak_into(log)
    try:
        said = {"value": work()}
    except MudpuppyError as error:
        traceback.print_exc()
        said = {"error": _freeze(error)}
    json.dump(said, to, allow_nan=False)
    to.flush()


def _speak_into(log: Path) -> None:
    """Send everything that is printed, by libraries in C too, to the end of a file."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for number in (1, 2):
        os.dup2(handle, number)
    os.close(handle)
    # whoever captures the output of the parent does not capture the child's
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def use_threads() -> None:
    """Give torch the share of the cores that the environment names; 0 is none."""
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
