"""How a process ended, in words: its exit code, or the signal's name (standard library only)."""

from __future__ import annotations

import signal


def name_signal(number: int) -> str:
    """Return the name of a signal, such as SIGSEGV; real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe_exit(code: int) -> str:
    """Return what ended a process: `exit code 3`, or `SIGSEGV`.

    Args:
        code: as `subprocess` tells it, less than zero for a signal.
    """
    return f"exit code {code}" if code >= 0 else name_signal(-code)
