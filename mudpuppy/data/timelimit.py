"""A time limit for code that may never come to an end, such as a chat template."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class TimeLimitReached(Exception):
    """The block took too long."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimitReached inside the block after `seconds`.

    It is an alarm signal, so it stops Python code in the main thread only; elsewhere there is no
    limit. An alarm that somebody else has set goes on afterwards, and one that comes earlier stays.
    """
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or 0 < left <= seconds:
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeLimitReached

    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            rest = max(left - (time.monotonic() - started), 0.001)
            signal.setitimer(signal.ITIMER_REAL, rest, interval)
