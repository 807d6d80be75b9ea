"""Phases of a cell: each in a child of a leader that has imported everything and computed nothing.

So every phase starts with fresh state, and none pays for the imports. Whoever computes in the
leader breaks this: a forked child of a process that has used OpenMP may hang.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from mudpuppy.children import be_child, die_with
from mudpuppy.exits import name_signal


class PhaseEnded(Exception):
    """A phase did not come to its end."""

    def __init__(self, name: str, code: int) -> None:
        """Describe the ending; a negative `code` is a signal, as in `subprocess`."""
        ending = f"ended by {name_signal(-code)}" if code < 0 else f"exit code {code}"
        super().__init__(f"{name}: {ending}, see above")
        self.code = code


def run_phase(name: str, work: Callable[[], Any]) -> None:
    """Run `work` in a forked child and wait for it.

    Raises:
        PhaseEnded: it ended by a signal or an exception, which it has printed.
    """
    _, status = os.waitpid(start_phase(work), 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise PhaseEnded(name, code)


def start_phase(work: Callable[[], Any]) -> int:
    """Run `work` in a forked child, and return its id; the caller waits for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    ask = die_with(os.getpid())
    pid = os.fork()
    if pid == 0:
        _be_phase(work, ask)
    return pid


def run_team(name: str, work: Callable[[], Any], size: int) -> None:
    """Run `work` in several forked children that train together, as torchrun would start them.

    Raises:
        PhaseEnded: one of them ended by a signal or an exception; the others were ended.
    """
    port = _free_port()
    pids: dict[int, int] = {}
    sys.stdout.flush()
    sys.stderr.flush()
    ask = die_with(os.getpid())
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            os.environ |= _place_in_team(rank, size, port)
            _be_phase(work, ask)
        pids[pid] = rank
    failure = 0
    while pids:
        pid, status = os.waitpid(-1, 0)
        if pids.pop(pid, None) is None:
            continue
        code = os.waitstatus_to_exitcode(status)
        if code and not failure:
            failure = code
            for other in pids:  # they would wait for the one that has gone
                os.kill(other, signal.SIGKILL)
    if failure:
        raise PhaseEnded(name, failure)


def _place_in_team(rank: int, size: int, port: int) -> dict[str, str]:
    """Return the environment variables by which torchrun tells a process its place."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return {
        **{key: str(value) for key, value in numbers.items()},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _be_phase(work: Callable[[], Any], ask: Callable[[], None] | None) -> NoReturn:
    """Do the work with the collector that the leader has switched off."""
    gc.enable()
    be_child(work, ask)
