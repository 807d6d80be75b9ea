"""Work that ends in time: a call that is given up when its time is over, whatever it waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class Overdue(Exception):
    """The time is over; the work may go on, and nobody waits for it."""


def call_within(seconds: float, work: Callable[[], _T]) -> _T:
    """Return what `work` returns, or raise what it raises, within a time.

    A timeout of a socket counts from the last byte: a server that sends one now and then, or lets
    a name be looked up for ever, is under no limit at all. So the work is done in a thread of its
    own, which does not keep the process alive.

    Args:
        seconds: how long to wait, at least a moment.
        work: what to do; it must be harmless when it goes on afterwards.

    Raises:
        Overdue: the time was over first.
    """
    made: list[_T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            made.append(work())
        except BaseException as problem:  # noqa: BLE001 - raised again by who waits
            raised.append(problem)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(0.0, seconds))
    if raised:
        raise raised[0]
    if not made:
        raise Overdue
    return made[0]
