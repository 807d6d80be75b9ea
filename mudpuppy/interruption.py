"""SIGTERM and SIGHUP as Ctrl-C is: what is open is closed, and the exit code tells."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""
TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM, as shells and schedulers know it."""


HUNG_UP = 128 + signal.SIGHUP
"""Exit code after SIGHUP: the terminal was closed, or the connection to it lost."""


class Terminated(KeyboardInterrupt):
    """Raised in the main thread by SIGTERM, which a scheduler sends before it kills."""


class HungUp(Terminated):
    """Raised in the main thread by SIGHUP; `nohup` ignores the signal, and so do we then."""


_RAISED: dict[int, type[Terminated]] = {signal.SIGTERM: Terminated, signal.SIGHUP: HungUp}


@contextmanager
def raising_when_terminated() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM and `HungUp` on SIGHUP inside the block.

    A signal that somebody else handles already, or that is ignored, is left to them.
    """
    is_main = threading.current_thread() is threading.main_thread()
    ours = [one for one in _RAISED if is_main and signal.getsignal(one) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    raise _RAISED[number]


def describe(error: KeyboardInterrupt) -> tuple[str, int]:
    """Return how a message calls what ended the command, and the exit code."""
    if isinstance(error, HungUp):
        return "hung up", HUNG_UP
    if isinstance(error, Terminated):
        return "terminated", TERMINATED
    return "interrupted", INTERRUPTED
