"""SIGTERM as Ctrl-C is: what is open is closed, one message is printed, and the exit code tells."""

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


class Terminated(KeyboardInterrupt):
    """Raised in the main thread by SIGTERM, which a scheduler sends before it kills."""


@contextmanager
def raising_when_terminated() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM inside the block, unless somebody else handles it already."""
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise Terminated


def describe(error: KeyboardInterrupt) -> tuple[str, int]:
    """Return how a message calls what ended the command, and the exit code."""
    if isinstance(error, Terminated):
        return "terminated", TERMINATED
    return "interrupted", INTERRUPTED
